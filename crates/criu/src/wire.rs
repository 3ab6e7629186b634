//! The part of protocol buffers' encoding that criu's messages use.
//!
//! <https://protobuf.dev/programming-guides/encoding/>. Reading is strict where two readers could differ: criu's library
//! takes the last of a repeated scalar and merges repeated messages; here asking for one of several is an error.

/// Bytes that are no message, or not the one that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A message being written.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn number(&mut self, field: u32, value: u64) {
        self.varint(u64::from(field) << 3);
        self.varint(value);
    }

    pub(crate) fn flag(&mut self, field: u32, value: bool) {
        self.number(field, value.into());
    }

    pub(crate) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    pub(crate) fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    /// Fields as they are: see [`fields`].
    pub(crate) fn raw(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// A message that was read. Fields that nobody asks for are not looked at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message<'a>(Vec<(u32, Value<'a>)>);

impl<'a> Message<'a> {
    pub(crate) fn parse(mut rest: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let mut fields = Vec::new();
        while !rest.is_empty() {
            fields.push(take_field(&mut rest)?);
        }
        Ok(Message(fields))
    }

    /// A number that is there at most once.
    pub(crate) fn number(&self, field: u32) -> Result<Option<u64>, Malformed> {
        match self.only(field)? {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number)),
            Some(Value::Bytes(_)) => Err(Malformed),
        }
    }

    /// Bytes that are there at most once.
    pub(crate) fn bytes(&self, field: u32) -> Result<Option<&'a [u8]>, Malformed> {
        match self.only(field)? {
            None => Ok(None),
            Some(Value::Bytes(bytes)) => Ok(Some(bytes)),
            Some(Value::Number(_)) => Err(Malformed),
        }
    }

    pub(crate) fn text(&self, field: u32) -> Result<Option<&'a str>, Malformed> {
        self.bytes(field)?.map(|bytes| std::str::from_utf8(bytes).map_err(|_| Malformed)).transpose()
    }

    /// A message that is there at most once.
    pub(crate) fn message(&self, field: u32) -> Result<Option<Message<'a>>, Malformed> {
        self.bytes(field)?.map(Message::parse).transpose()
    }

    /// Messages that may be there any number of times.
    pub(crate) fn messages(&self, field: u32) -> Result<Vec<Message<'a>>, Malformed> {
        self.all(field)
            .map(|value| match value {
                Value::Bytes(bytes) => Message::parse(bytes),
                Value::Number(_) => Err(Malformed),
            })
            .collect()
    }

    /// Numbers that may be there any number of times, each by itself or packed.
    pub(crate) fn numbers(&self, field: u32) -> Result<Vec<u64>, Malformed> {
        let mut numbers = Vec::new();
        for value in self.all(field) {
            match value {
                Value::Number(number) => numbers.push(number),
                Value::Bytes(mut packed) => {
                    while !packed.is_empty() {
                        numbers.push(take_varint(&mut packed)?);
                    }
                }
            }
        }
        Ok(numbers)
    }

    fn all(&self, field: u32) -> impl Iterator<Item = Value<'a>> {
        self.0.iter().filter(move |(other, _)| *other == field).map(|(_, value)| *value)
    }

    fn only(&self, field: u32) -> Result<Option<Value<'a>>, Malformed> {
        let mut all = self.all(field);
        match (all.next(), all.next()) {
            (value, None) => Ok(value),
            _ => Err(Malformed),
        }
    }
}

/// The fields of a message, each by its number and as the bytes that it is.
pub(crate) fn fields(mut rest: &[u8]) -> Result<Vec<(u32, &[u8])>, Malformed> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let before = rest;
        let (field, _) = take_field(&mut rest)?;
        found.push((field, &before[..before.len() - rest.len()]));
    }
    Ok(found)
}

fn take_field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Value<'a>), Malformed> {
    let tag = take_varint(rest)?;
    let field = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
    let value = match tag & 7 {
        0 => Value::Number(take_varint(rest)?),
        1 => Value::Number(u64::from_le_bytes(take(rest, 8)?.try_into().map_err(|_| Malformed)?)),
        2 => {
            let len = usize::try_from(take_varint(rest)?).map_err(|_| Malformed)?;
            Value::Bytes(take(rest, len)?)
        }
        5 => {
            let bytes = take(rest, 4)?.try_into().map_err(|_| Malformed)?;
            Value::Number(u32::from_le_bytes(bytes).into())
        }
        _ => return Err(Malformed),
    };
    if field == 0 { Err(Malformed) } else { Ok((field, value)) }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], Malformed> {
    let (taken, left) = rest.split_at_checked(len).ok_or(Malformed)?;
    *rest = left;
    Ok(taken)
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        // The tenth byte has room for one bit.
        if shift == 63 && byte > 1 {
            return Err(Malformed);
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut writer = Writer::default();
        writer.number(1, 300);
        writer.flag(2, true);
        writer.message(3, |inner| inner.bytes(1, b"key"));
        writer.number(4, u64::MAX);
        writer.number(4, 0);
        let bytes = writer.finish();
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.number(1), Ok(Some(300)));
        assert_eq!(message.number(2), Ok(Some(1)));
        assert_eq!(message.message(3).unwrap().unwrap().text(1), Ok(Some("key")));
        assert_eq!(message.numbers(4), Ok(vec![u64::MAX, 0]));
        assert_eq!(message.number(9), Ok(None));
        assert_eq!(message.number(4), Err(Malformed), "one of two is not ours to choose");
        let mut again = Writer::default();
        for (_, field) in fields(&bytes).unwrap() {
            again.raw(field);
        }
        assert_eq!(again.finish(), bytes);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let table: [&[u8]; 6] = [
            &[0x08],                                                             // a number without its value
            &[0x0a, 0x05, 1], // five bytes promised, one there
            &[0x0b],          // a group
            &[0x00, 0x00],    // field 0
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], // more than 64 bits
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // a length beyond everything
        ];
        for bytes in table {
            assert!(Message::parse(bytes).is_err(), "{bytes:x?}");
        }
    }
}

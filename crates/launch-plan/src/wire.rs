//! The codec of everything that passes between our own processes: little-endian, length-checked, no padding.
//!
//! Numbers are little-endian; a list is a `u32` count and its items; a byte string a `u32` length and its bytes;
//! an option one byte and the value; an enum one byte and its fields. Reading never allocates more than the
//! input is long, stops at the first byte that makes no sense, and demands that nothing is left over.

use std::ffi::CString;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends before the value does.
    Short,
    /// Bytes are left after the last value.
    Trailing,
    /// No such variant of the enum, or neither 0 nor 1 for a bool.
    Variant,
    /// A C string with a NUL inside.
    Nul,
    /// Not a message of this kind.
    Magic,
    /// A version that this build does not speak.
    Version(u32),
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DecodeError::Short => f.write_str("the message ends too early"),
            DecodeError::Trailing => f.write_str("the message has bytes left over"),
            DecodeError::Variant => f.write_str("the message has an unknown variant"),
            DecodeError::Nul => f.write_str("a string of the message has a NUL inside"),
            DecodeError::Magic => f.write_str("this is no such message"),
            DecodeError::Version(version) => {
                write!(f, "the message has version {version}, which this build does not speak")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

/// The unread rest of a message.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts at the front.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(head)
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// Demands that all was read.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

/// A value that can travel.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads one value.
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// The bytes of one value.
pub fn encode<T: Wire>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    value.put(&mut out);
    out
}

/// The one value that these bytes are.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut reader = Reader::new(bytes);
    let value = T::get(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

macro_rules! number {
    ($($t:ty),*) => {$(
        impl Wire for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let bytes = reader.take(size_of::<$t>())?;
                Ok(<$t>::from_le_bytes(bytes.try_into().map_err(|_| DecodeError::Short)?))
            }
        }
    )*};
}
number!(u8, u16, u32, u64, i32, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::get(reader)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Variant),
        }
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.take(N)?.try_into().map_err(|_| DecodeError::Short)
    }
}

/// Bytes as they are, without the cost of a list of numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl Wire for Blob {
    fn put(&self, out: &mut Vec<u8>) {
        (self.0.len() as u32).put(out);
        out.extend_from_slice(&self.0);
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = u32::get(reader)? as usize;
        Ok(Blob(reader.take(len)?.to_vec()))
    }
}

impl Wire for CString {
    fn put(&self, out: &mut Vec<u8>) {
        let bytes = self.as_bytes();
        (bytes.len() as u32).put(out);
        out.extend_from_slice(bytes);
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = u32::get(reader)? as usize;
        CString::new(reader.take(len)?).map_err(|_| DecodeError::Nul)
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = u32::get(reader)? as usize;
        Ok(String::from_utf8_lossy(reader.take(len)?).into_owned())
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        for item in self {
            item.put(out);
        }
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = u32::get(reader)? as usize;
        // Every item takes at least one byte, so a lying count is caught before memory is asked for.
        if count > reader.left() {
            return Err(DecodeError::Short);
        }
        (0..count).map(|_| T::get(reader)).collect()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                value.put(out);
            }
        }
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if bool::get(reader)? { T::get(reader).map(Some) } else { Ok(None) }
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::get(reader)?, B::get(reader)?))
    }
}

/// Declares a struct that travels: its fields in order.
#[macro_export]
macro_rules! wire_struct {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
        impl $crate::wire::Wire for $name {
            fn put(&self, _out: &mut Vec<u8>) {
                $($crate::wire::Wire::put(&self.$field, _out);)*
            }
            fn get(_reader: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::wire::DecodeError> {
                Ok(Self { $($field: $crate::wire::Wire::get(_reader)?),* })
            }
        }
    };
}

/// Declares an enum that travels: the number of the variant in one byte, then its fields in order.
#[macro_export]
macro_rules! wire_enum {
    ($(#[$meta:meta])* pub enum $name:ident {
        $($(#[$vmeta:meta])* $variant:ident = $tag:literal $({ $($(#[$fmeta:meta])* $field:ident: $ty:ty),* $(,)? })?),* $(,)?
    }) => {
        $(#[$meta])*
        pub enum $name { $($(#[$vmeta])* $variant $({ $($(#[$fmeta])* $field: $ty),* })?),* }
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        out.push($tag);
                        $($($crate::wire::Wire::put($field, out);)*)?
                    })*
                }
            }
            fn get(reader: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::wire::DecodeError> {
                match <u8 as $crate::wire::Wire>::get(reader)? {
                    $($tag => Ok(Self::$variant $({ $($field: $crate::wire::Wire::get(reader)?),* })?),)*
                    _ => Err($crate::wire::DecodeError::Variant),
                }
            }
        }
    };
}

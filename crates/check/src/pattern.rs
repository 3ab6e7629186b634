//! Long outputs, compared piece by piece: byte by byte a program that is built to be built quickly takes minutes for them in
//! an emulated guest.

/// Whether `text` is what stands from `at` on in an endless repetition of `block`, which is not empty.
pub(crate) fn repeats(block: &[u8], at: usize, text: &[u8]) -> bool {
    let mut rest = text;
    let mut from = at % block.len();
    while !rest.is_empty() {
        let length = rest.len().min(block.len() - from);
        let (piece, after) = rest.split_at(length);
        if piece != &block[from..from + length] {
            return false;
        }
        (rest, from) = (after, 0);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::repeats;

    #[test]
    fn an_endless_text_is_known_from_any_place() {
        for (at, text, expected) in [
            (0, "", true),
            (0, "abcabca", true),
            (1, "bcab", true),
            (5, "cabc", true),
            (5, "cabd", false),
            (0, "abcabb", false),
        ] {
            assert_eq!(repeats(b"abc", at, text.as_bytes()), expected, "{at} {text}");
        }
    }
}

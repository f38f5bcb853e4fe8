//! Keys, values, levels and stamps as people type and read them; the console and the inspector share it.
//!
//! Words of a line are separated by spaces:
//!
//!   hello          bare: the characters themselves
//!   'a b', "a b"   quoted: spaces are part of it; \' \" \\ \n \t \r \0 and \xHH (one byte) are escapes
//!   0x0089ff       bytes, two hexadecimal digits each
//!
//! As a key, a bare number from 0 to 255 is the classic integer key, which is the key of that one byte. What is printed
//! can be typed again and means the same bytes.

use chrono::DateTime;

use crate::coordinator::level;
use crate::thrift::chord::Level;
use crate::thrift::method::Refusal;

/// One word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// What it stands for.
    pub bytes: Vec<u8>,
    /// How it was written.
    pub form: Form,
}

/// How a word was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Without quotes.
    Bare,
    /// In quotes.
    Quoted,
    /// As hexadecimal digits.
    Hex,
}

/// A partition key as somebody typed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The partition key.
    pub bytes: Vec<u8>,
    /// As it is shown in answers: a classic key as its number, others as [`value`] shows them.
    pub shown: String,
}

impl Word {
    /// The word if it was written without quotes: commands, levels and options are.
    pub fn bare(&self) -> Option<&str> {
        match self.form {
            Form::Bare => std::str::from_utf8(&self.bytes).ok(),
            Form::Quoted | Form::Hex => None,
        }
    }
}

/// Parts a line into words, or says what is wrong with it.
pub fn words(line: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, after) = match first {
            '\'' | '"' => quoted(rest, first)?,
            _ => unquoted(rest)?,
        };
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

fn unquoted(rest: &str) -> Result<(Word, &str), String> {
    let (text, after) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
    let word = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => Word { bytes: from_hex(digits)?, form: Form::Hex },
        None => Word { bytes: text.as_bytes().to_vec(), form: Form::Bare },
    };
    Ok((word, after))
}

fn from_hex(digits: &str) -> Result<Vec<u8>, String> {
    if !digits.len().is_multiple_of(2) || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(format!("0x{digits}: bytes are pairs of hexadecimal digits, as in 0x0089ff"));
    }
    let pairs = digits.as_bytes().chunks(2);
    Ok(pairs.map(|pair| hex_digit(pair[0]) << 4 | hex_digit(pair[1])).collect())
}

fn hex_digit(digit: u8) -> u8 {
    (digit as char).to_digit(16).expect("checked to be a hexadecimal digit") as u8
}

fn quoted(rest: &str, quote: char) -> Result<(Word, &str), String> {
    let mut bytes = Vec::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, next)) = chars.next() {
        if next == quote {
            let after = &rest[at + 1..];
            if after.starts_with(|next: char| !next.is_whitespace()) {
                return Err(format!("a space is missing after {}", &rest[..=at]));
            }
            return Ok((Word { bytes, form: Form::Quoted }, after));
        }
        if next != '\\' {
            bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match chars.next().map(|(_, escaped)| escaped) {
            Some(escaped @ ('\'' | '"' | '\\')) => bytes.push(escaped as u8),
            Some('n') => bytes.push(b'\n'),
            Some('t') => bytes.push(b'\t'),
            Some('r') => bytes.push(b'\r'),
            Some('0') => bytes.push(0),
            Some('x') => {
                let digits: String = chars.by_ref().take(2).map(|(_, digit)| digit).collect();
                match from_hex(&digits).as_deref() {
                    Ok([byte]) => bytes.push(*byte),
                    _ => return Err("\\x needs two hexadecimal digits".to_owned()),
                }
            }
            Some(other) => {
                return Err(format!("\\{other} is no escape; there are \\' \\\" \\\\ \\n \\t \\r \\0 \\xHH"));
            }
            None => break,
        }
    }
    Err(format!("the closing {quote} is missing"))
}

/// The key a word stands for.
pub fn key(word: &Word) -> Result<Key, String> {
    if let Some(text) = word.bare()
        && is_number(text)
    {
        let number = text.parse::<u8>().ok().filter(|number| number.to_string() == text);
        let why = || format!("a classic key is a number from 0 to 255; for the text {text} write '{text}'");
        return number.map(|number| Key { bytes: vec![number], shown: text.to_owned() }).ok_or_else(why);
    }
    if word.bytes.is_empty() {
        return Err("a key cannot be empty".to_owned());
    }
    if word.bytes.len() > crate::key::PARTITION_KEY_BYTES_MAX {
        return Err(format!("a key has at most {} bytes", crate::key::PARTITION_KEY_BYTES_MAX));
    }
    Ok(Key { bytes: word.bytes.clone(), shown: text_key(&word.bytes) })
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
}

fn text_key(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_number(text) => format!("'{text}'"),
        _ => value(bytes),
    }
}

/// A partition key that nobody typed: one byte is shown as the classic key it is.
pub fn shown_key(partition: &[u8]) -> String {
    match partition {
        [classic] => classic.to_string(),
        _ => text_key(partition),
    }
}

/// A value, or a key that is text: bare if that can be read back, else in quotes; bytes that are no printable text
/// as 0xHEX.
pub fn value(bytes: &[u8]) -> String {
    match printable(bytes) {
        None => hex(bytes),
        Some(text) if reads_back_bare(text) => text.to_owned(),
        Some(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
    }
}

fn printable(bytes: &[u8]) -> Option<&str> {
    // Characters without a look of their own, or that turn the writing direction, would make two keys look the same.
    let invisible = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains(invisible))
}

fn reads_back_bare(text: &str) -> bool {
    let special = text.starts_with(['\'', '"', '#']) || text.starts_with("0x") || text.starts_with("0X");
    !text.is_empty() && !special && !text.contains(char::is_whitespace)
}

/// Bytes as 0xHEX.
pub fn hex(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(2 + 2 * bytes.len());
    shown.push_str("0x");
    for byte in bytes {
        shown.push_str(&format!("{byte:02x}"));
    }
    shown
}

/// At most `chars_max` characters of a shown value, the cut marked with an ellipsis.
pub fn cut(shown: &str, chars_max: usize) -> String {
    match shown.char_indices().nth(chars_max) {
        None => shown.to_owned(),
        Some((end, _)) => format!("{}…", &shown[..end]),
    }
}

/// 2000-01-01 and 10000-01-01 in microseconds since 1970: a stamp between them is a time.
const STAMPS_OF_CLOCKS: std::ops::Range<i64> = 946_684_800_000_000..253_402_300_800_000_000;

/// A stamp as the time (UTC) it was made from; one that no clock made as the number it is.
pub fn stamp(stamp: i64) -> String {
    match DateTime::from_timestamp_micros(stamp) {
        Some(time) if STAMPS_OF_CLOCKS.contains(&stamp) => time.format("%Y-%m-%d %H:%M:%S%.6f").to_string(),
        _ => stamp.to_string(),
    }
}

/// A stamp where the time zone is to be said: `2026-11-21 02:15:28.999280 UTC`.
pub fn stamp_utc(at: i64) -> String {
    if STAMPS_OF_CLOCKS.contains(&at) { format!("{} UTC", stamp(at)) } else { format!("stamp {at}") }
}

/// Seconds since 1970 as a time (UTC).
pub fn second_utc(second: i64) -> String {
    match DateTime::from_timestamp(second, 0) {
        Some(time) => time.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        None => format!("second {second}"),
    }
}

/// A number with a comma between each three digits.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// The same for a number that may be below zero.
pub fn signed(number: i64) -> String {
    format!("{}{}", if number < 0 { "-" } else { "" }, count(number.unsigned_abs()))
}

/// Rows of equally many cells as lines: the first column to the left, the others to the right.
pub fn columns<R: AsRef<[String]>>(rows: &[R]) -> String {
    let count = rows.first().map_or(0, |row| row.as_ref().len());
    let width =
        |column: usize| rows.iter().map(|row| row.as_ref()[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows.iter().map(AsRef::as_ref) {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            line += &format!("  {cell:>width$}");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// `1 key`, `2 keys`.
pub fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Every level as people type it.
pub const LEVELS: [&str; 6] = ["one", "two", "three", "quorum", "all", "any"];

/// The level of that name, in any case.
pub fn level(name: &str) -> Option<Level> {
    level::Level::parse(name).map(|level| Level(level.number()))
}

/// The name of a level, in capitals.
pub fn level_name(level: Level) -> String {
    match level::Level::from_number(level.0) {
        Some(level) => level.name().to_owned(),
        None => format!("level {}", level.0),
    }
}

/// What a server said when it refused: its own words, or the exception's numbers if it sent none.
pub fn refusal(refusal: &Refusal) -> String {
    let said = |message: &Option<String>| message.clone().filter(|message| !message.is_empty());
    let level = |level: Option<Level>| level.map_or("the level".to_owned(), level_name);
    match refusal {
        Refusal::Unavailable(thrown) => said(&thrown.message).unwrap_or_else(|| {
            let (needed, alive) = (thrown.needed.unwrap_or(0), thrown.alive.unwrap_or(0));
            let level = level(thrown.level);
            format!("Not enough replicas alive: {level} needs {needed}, {alive} up; nothing was written")
        }),
        Refusal::Timeout(thrown) => said(&thrown.message).unwrap_or_else(|| {
            let (needed, acknowledged) = (thrown.needed.unwrap_or(0), thrown.acknowledged.unwrap_or(0));
            let level = level(thrown.level);
            format!("{level} needs {needed}, {acknowledged} answered in time; a write may or may not have happened")
        }),
        Refusal::Overloaded(thrown) => {
            said(&thrown.message).unwrap_or_else(|| "overloaded; nothing was written, try again later".to_owned())
        }
        Refusal::InvalidRequest(thrown) => {
            said(&thrown.why).unwrap_or_else(|| "the request is wrong; nothing was written".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word_bytes(line: &str) -> Result<Vec<Vec<u8>>, String> {
        words(line).map(|words| words.into_iter().map(|word| word.bytes).collect())
    }

    #[test]
    fn words_are_parted_by_spaces_and_quotes_hold_them() {
        let parted = |line: &str| word_bytes(line).unwrap();
        assert_eq!(parted(""), Vec::<Vec<u8>>::new());
        assert_eq!(parted("  put 1\tv "), [b"put".to_vec(), b"1".to_vec(), b"v".to_vec()]);
        assert_eq!(parted("'a b' \"c'd\""), [b"a b".to_vec(), b"c'd".to_vec()]);
        assert_eq!(parted(r#"'it\'s' "\"" '\\'"#), [b"it's".to_vec(), b"\"".to_vec(), b"\\".to_vec()]);
        assert_eq!(parted(r"'\n\t\r\0\xff'"), [b"\n\t\r\0\xff".to_vec()]);
        assert_eq!(
            parted("0x00fF it's a\\n ''"),
            [vec![0, 255], b"it's".to_vec(), b"a\\n".to_vec(), Vec::new()]
        );
        assert_eq!(parted("'ü'"), ["ü".as_bytes().to_vec()]);
    }

    #[test]
    fn what_is_no_word_is_explained() {
        for (line, said) in [
            ("put 'a", "the closing ' is missing"),
            ("'a\\", "the closing ' is missing"),
            ("'a'b", "a space is missing after 'a'"),
            ("0x1", "pairs of hexadecimal digits"),
            ("0xgg", "pairs of hexadecimal digits"),
            ("0xüü", "pairs of hexadecimal digits"),
            (r"'\xg0'", "two hexadecimal digits"),
            (r"'\q'", "\\q is no escape"),
        ] {
            let error = words(line).unwrap_err();
            assert!(error.contains(said), "{line} gave {error}");
        }
    }

    #[test]
    fn a_bare_number_is_a_classic_key_and_anything_else_its_bytes() {
        let typed = |line: &str| key(&words(line).unwrap()[0]).map(|key| (key.bytes, key.shown));
        assert_eq!(typed("137"), Ok((vec![0x89], "137".to_owned())));
        assert_eq!(typed("'137'"), Ok((b"137".to_vec(), "'137'".to_owned())));
        assert_eq!(typed("apple"), Ok((b"apple".to_vec(), "apple".to_owned())));
        assert_eq!(typed("'a b'"), Ok((b"a b".to_vec(), "'a b'".to_owned())));
        assert_eq!(typed("0x89"), Ok((vec![0x89], "0x89".to_owned())));
        for wrong in ["256", "-1", "007", "+1", "99999999999999999999"] {
            assert!(typed(wrong).unwrap_err().contains("from 0 to 255"), "{wrong}");
        }
        assert!(typed("''").is_err());
        assert!(key(&Word { bytes: vec![b'a'; 65_536], form: Form::Bare }).is_err());
        assert_eq!(shown_key(&[0x89]), "137");
    }

    #[test]
    fn values_are_shown_as_text_where_that_is_possible() {
        for (bytes, shown) in [
            (&b"value137"[..], "value137"),
            (b"", "''"),
            (b"a b", "'a b'"),
            (b"it's", "it's"),
            (b"'", r"'\''"),
            (b"a\\ b", r"'a\\ b'"),
            (b"0x41", "'0x41'"),
            (b"a\nb", "0x610a62"),
            (b"\xff\x00", "0xff00"),
            ("größe".as_bytes(), "größe"),
            ("\u{202e}".as_bytes(), "0xe280ae"),
        ] {
            assert_eq!(value(bytes), shown);
        }
        assert_eq!(cut("größe", 3), "grö…");
        assert_eq!(cut("größe", 5), "größe");
    }

    #[test]
    fn stamps_of_clocks_are_times_and_others_numbers() {
        assert_eq!(stamp_utc(1_795_227_328_999_280), "2026-11-21 02:15:28.999280 UTC");
        assert_eq!(stamp(1_795_227_328_000_000), "2026-11-21 02:15:28.000000");
        assert_eq!(stamp(123), "123");
        assert_eq!(stamp_utc(i64::MAX), format!("stamp {}", i64::MAX));
        assert_eq!(second_utc(1_795_227_328), "2026-11-21 02:15:28 UTC");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(signed(-1_000), "-1,000");
        assert_eq!(plural(1, "key", "keys"), "1 key");
    }

    #[test]
    fn levels_are_named_in_any_case() {
        assert_eq!(level("Quorum"), Some(Level::QUORUM));
        assert_eq!(level("quorums"), None);
        for name in LEVELS {
            assert_eq!(level_name(level(name).unwrap()), name.to_uppercase());
        }
        assert_eq!(level_name(Level::ALL), "ALL");
        assert_eq!(level_name(Level(3)), "level 3");
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_typed_again(bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..8),
            ".{0,8}".prop_map(String::into_bytes),
            "[0-9+\\-x'\" \\\\a]{0,5}".prop_map(String::into_bytes),
        ]) {
            prop_assert_eq!(word_bytes(&value(&bytes)), Ok(vec![bytes.clone()]));
            if !bytes.is_empty() {
                let typed = words(&shown_key(&bytes)).unwrap();
                prop_assert_eq!(key(&typed[0]).unwrap().bytes, bytes);
            }
        }
    }
}

//! Where does an unframed message end?
//!
//! The classic transport puts no length before a message: its end is found only by walking through it. [`Scanner`]
//! walks over the bytes without reading a value, one step at a time; a step is the header of the message or of a
//! field, element or entry together with the start of its value. Two things must always be true:
//!
//! - A step that lacks bytes leaves no trace and is repeated when more have come; a step that was taken is never
//!   taken again. So a sender of single bytes costs what any other does, and a long string one comparison a read.
//! - Whatever a length or a count claims is held against the bounds before anybody reserves a byte for it.
//!
//! Not here: what the values mean (`codec`), frames (`dress`).

use super::codec::Protocol;

/// What one message may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the message.
    pub bytes_max: usize,
    /// Nested structs and containers.
    pub depth_max: usize,
}

/// Why bytes are no message this server reads. The connection they came on cannot be used further: where the next
/// message would start is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The first bytes of a connection belong to no dress.
    #[error(
        "not Thrift: it starts with the bytes {first:02x?}, which is no message and no frame of at most {bytes_max} bytes"
    )]
    NotThrift {
        /// The first four bytes.
        first: [u8; 4],
        /// The bound on a frame.
        bytes_max: usize,
    },
    /// A message, a frame, or a string or container in it, is longer than a message may be.
    #[error("a message longer than message_bytes_max = {bytes_max}")]
    TooLong {
        /// The bound.
        bytes_max: usize,
    },
    /// Structs and containers nest too deep.
    #[error("structs and containers nested deeper than message_depth_max = {depth_max}")]
    TooDeep {
        /// The bound.
        depth_max: usize,
    },
    /// A string or container of fewer than no bytes or items.
    #[error("a negative length")]
    NegativeLength,
    /// A type that is none, or that nothing can be of.
    #[error("the wire type {code} does not exist")]
    BadType {
        /// As it came.
        code: u8,
    },
    /// A number of more bytes than its type has room for.
    #[error("a number in more than {bytes_max} bytes")]
    LongVarint {
        /// The bound.
        bytes_max: usize,
    },
    /// The first bytes of a message are not those of its protocol.
    #[error("a message header that is neither strict binary nor compact")]
    BadHeader,
    /// The start of a frame is neither THeader nor a message.
    #[error("a frame that holds neither THeader nor a message")]
    BadFrame,
    /// THeader asks for a transform, such as zlib.
    #[error("THeader transforms (such as zlib) are not supported; send without them")]
    Transforms,
    /// THeader names a protocol other than binary and compact.
    #[error("the THeader protocol {id} is not supported; binary (0) and compact (2) are")]
    UnknownProtocol {
        /// As it came.
        id: u64,
    },
    /// The header of a whole message cannot be read, or it is no call.
    #[error("a message that is no call: {0}")]
    NoCall(String),
}

/// Finds the end of one message after the other.
#[derive(Debug)]
pub struct Scanner {
    protocol: Protocol,
    bounds: Bounds,
    /// The first byte not walked over. Past the end of the buffer while a string is still on its way.
    position: usize,
    /// What has been entered and not left, the innermost last. Empty: the message has ended.
    open: Vec<Open>,
}

/// Something entered.
#[derive(Clone, Copy, Debug)]
enum Open {
    /// The message, before its header.
    Header,
    /// A struct: fields until a stop.
    Fields,
    /// A container: `left` values of these two kinds alternately, so that `second` is due when one value is left. The
    /// two are the same for lists and sets.
    Values { first: Kind, second: Kind, left: usize },
}

/// As much of a type as is needed to walk over its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// This many bytes.
    Fixed(usize),
    /// A number of at most this many bytes, seven bits in each.
    Varint(usize),
    /// A length and that many bytes.
    Bytes,
    Struct,
    /// A list or a set.
    List,
    Map,
}

/// Why a step was not taken.
enum Halt {
    /// Its bytes are not all there.
    More,
    Broken(Broken),
}

impl From<Broken> for Halt {
    fn from(broken: Broken) -> Halt {
        Halt::Broken(broken)
    }
}

/// Longest varint of an i32 and of an i64.
const VARINT32_BYTES_MAX: usize = 5;
const VARINT64_BYTES_MAX: usize = 10;

impl Scanner {
    /// A scanner before the first byte of a message.
    pub fn new(protocol: Protocol, bounds: Bounds) -> Scanner {
        Scanner { protocol, bounds, position: 0, open: vec![Open::Header] }
    }

    /// Where the message ends that starts with `bytes`, `None` as long as the end is not among them. After `None` the
    /// next call must bring the same bytes and more; after an end it begins with the next message.
    pub fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Broken> {
        while !self.open.is_empty() {
            match self.step(bytes) {
                Ok(()) => {}
                Err(Halt::More) => return Ok(None),
                Err(Halt::Broken(broken)) => return Err(broken),
            }
        }
        let end = self.position;
        assert!(end <= bytes.len(), "a message ends with a stop that was seen");
        self.position = 0;
        self.open.push(Open::Header);
        Ok(Some(end))
    }

    /// How many bytes the message has at least, by what was seen so far.
    pub fn bytes_min(&self) -> usize {
        self.position + 1
    }

    /// The protocol of the messages.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn step(&mut self, bytes: &[u8]) -> Result<(), Halt> {
        let mut cursor = Cursor { bytes, at: self.position, protocol: self.protocol };
        let innermost = *self.open.last().expect("a message that has not ended is open");
        let (rest, entered) = match innermost {
            Open::Header => {
                cursor.header()?;
                (None, Some(Open::Fields))
            }
            Open::Fields => match cursor.field()? {
                None => (None, None),
                Some(kind) => (Some(Open::Fields), cursor.enter(kind, self.bounds)?),
            },
            Open::Values { left: 0, .. } => (None, None),
            Open::Values { first, second, left } => {
                let kind = if left % 2 == 0 { first } else { second };
                // It stays open around its last value too: that may go deeper still.
                (Some(Open::Values { first, second, left: left - 1 }), cursor.enter(kind, self.bounds)?)
            }
        };
        self.commit(cursor.at, rest, entered)
    }

    /// Takes a step: to `position`, with `rest` left of what was innermost and `entered` inside it.
    fn commit(&mut self, position: usize, rest: Option<Open>, entered: Option<Open>) -> Result<(), Halt> {
        if position > self.bounds.bytes_max {
            return Err(Broken::TooLong { bytes_max: self.bounds.bytes_max }.into());
        }
        self.open.pop();
        self.open.extend(rest);
        self.open.extend(entered);
        if self.open.len() > self.bounds.depth_max {
            return Err(Broken::TooDeep { depth_max: self.bounds.depth_max }.into());
        }
        self.position = position;
        Ok(())
    }
}

/// Reads within one step. What it reads counts only once the step is committed.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    protocol: Protocol,
}

impl Cursor<'_> {
    fn byte(&mut self) -> Result<u8, Halt> {
        let byte = *self.bytes.get(self.at).ok_or(Halt::More)?;
        self.at += 1;
        Ok(byte)
    }

    fn word(&mut self) -> Result<[u8; 4], Halt> {
        Ok([self.byte()?, self.byte()?, self.byte()?, self.byte()?])
    }

    fn varint(&mut self, bytes_max: usize) -> Result<u64, Halt> {
        let mut value = 0;
        for index in 0..bytes_max {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * index).min(63);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Broken::LongVarint { bytes_max }.into())
    }

    /// The length of a string or the count of a container.
    fn length(&mut self) -> Result<usize, Halt> {
        let length = match self.protocol {
            Protocol::Binary => i32::from_be_bytes(self.word()?),
            Protocol::Compact => self.varint(VARINT32_BYTES_MAX)? as u32 as i32,
        };
        usize::try_from(length).map_err(|_| Broken::NegativeLength.into())
    }

    /// Moves on by `bytes`, which need not be there yet.
    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn header(&mut self) -> Result<(), Halt> {
        let kind = match self.protocol {
            Protocol::Binary => match self.word()? {
                [0x80, 0x01, _, kind] => kind,
                _ => return Err(Broken::BadHeader.into()),
            },
            Protocol::Compact => match [self.byte()?, self.byte()?] {
                [0x82, version] if version & 0x1f == 1 => version >> 5,
                _ => return Err(Broken::BadHeader.into()),
            },
        };
        if !(1..=4).contains(&kind) {
            return Err(Broken::BadHeader.into());
        }
        match self.protocol {
            Protocol::Binary => {
                let name = self.length()?;
                self.skip(name + 4); // the sequence number follows the name
            }
            Protocol::Compact => {
                self.varint(VARINT32_BYTES_MAX)?;
                let name = self.length()?;
                self.skip(name);
            }
        }
        Ok(())
    }

    /// The header of a field; `None` for a stop.
    fn field(&mut self) -> Result<Option<Kind>, Halt> {
        let byte = self.byte()?;
        match self.protocol {
            Protocol::Binary if byte == 0 => Ok(None),
            Protocol::Binary => {
                self.skip(2); // the field's number
                binary_kind(byte).map(Some)
            }
            Protocol::Compact if byte & 0x0f == 0 => Ok(None),
            Protocol::Compact => {
                if byte >> 4 == 0 {
                    self.varint(VARINT32_BYTES_MAX)?; // the number, as it is no small step from the one before
                }
                match byte & 0x0f {
                    1 | 2 => Ok(Some(Kind::Fixed(0))), // a bool is in the header itself
                    code => compact_kind(code).map(Some),
                }
            }
        }
    }

    /// Walks over a value, or to its first inner value; then returns what was entered.
    fn enter(&mut self, kind: Kind, bounds: Bounds) -> Result<Option<Open>, Halt> {
        match kind {
            Kind::Fixed(bytes) => self.skip(bytes),
            Kind::Varint(bytes_max) => drop(self.varint(bytes_max)?),
            Kind::Bytes => {
                let length = self.length()?;
                self.skip(length);
            }
            Kind::Struct => return Ok(Some(Open::Fields)),
            Kind::List => return self.list(bounds),
            Kind::Map => return self.map(bounds),
        }
        Ok(None)
    }

    fn list(&mut self, bounds: Bounds) -> Result<Option<Open>, Halt> {
        let (code, count) = match self.protocol {
            Protocol::Binary => (self.byte()?, self.length()?),
            Protocol::Compact => match self.byte()? {
                byte if byte >> 4 == 15 => (byte & 0x0f, self.length()?),
                byte => (byte & 0x0f, usize::from(byte >> 4)),
            },
        };
        if count == 0 {
            return Ok(None); // and its type may be any: some writers leave it out
        }
        let kind = self.item_kind(code)?;
        self.values(kind, None, count, bounds)
    }

    fn map(&mut self, bounds: Bounds) -> Result<Option<Open>, Halt> {
        let (first, second, count) = match self.protocol {
            Protocol::Binary => (self.byte()?, self.byte()?, self.length()?),
            Protocol::Compact => match self.length()? {
                0 => (0, 0, 0),
                count => {
                    let codes = self.byte()?;
                    (codes >> 4, codes & 0x0f, count)
                }
            },
        };
        if count == 0 {
            return Ok(None);
        }
        let (first, second) = (self.item_kind(first)?, self.item_kind(second)?);
        self.values(first, Some(second), count, bounds)
    }

    /// Enters a container of `count` items, or walks over it at once where all its values are of fixed size.
    fn values(
        &mut self,
        first: Kind,
        second: Option<Kind>,
        count: usize,
        bounds: Bounds,
    ) -> Result<Option<Open>, Halt> {
        let item_bytes_min = self.bytes_min(first) + second.map_or(0, |second| self.bytes_min(second));
        let container_bytes_min = count.saturating_mul(item_bytes_min);
        if self.at.saturating_add(container_bytes_min) > bounds.bytes_max {
            return Err(Broken::TooLong { bytes_max: bounds.bytes_max }.into());
        }
        if let (Kind::Fixed(_), None | Some(Kind::Fixed(_))) = (first, second) {
            self.skip(container_bytes_min);
            return Ok(None);
        }
        let left = if second.is_some() { 2 * count } else { count };
        Ok(Some(Open::Values { first, second: second.unwrap_or(first), left }))
    }

    fn item_kind(&self, code: u8) -> Result<Kind, Halt> {
        match self.protocol {
            Protocol::Binary => binary_kind(code),
            Protocol::Compact => compact_kind(code),
        }
    }

    /// The smallest value of a kind.
    fn bytes_min(&self, kind: Kind) -> usize {
        match (self.protocol, kind) {
            (_, Kind::Fixed(bytes)) => bytes,
            (_, Kind::Varint(_) | Kind::Struct) | (Protocol::Compact, _) => 1,
            (Protocol::Binary, Kind::Bytes) => 4,
            (Protocol::Binary, Kind::List) => 5,
            (Protocol::Binary, Kind::Map) => 6,
        }
    }
}

fn binary_kind(code: u8) -> Result<Kind, Halt> {
    Ok(match code {
        2 | 3 => Kind::Fixed(1),  // bool, i8
        4 | 10 => Kind::Fixed(8), // double, i64
        6 => Kind::Fixed(2),
        8 => Kind::Fixed(4),
        11 => Kind::Bytes,
        12 => Kind::Struct,
        13 => Kind::Map,
        14 | 15 => Kind::List,
        16 => Kind::Fixed(16), // uuid
        _ => return Err(Broken::BadType { code }.into()),
    })
}

/// Of an item of a container, and of any field but a bool.
fn compact_kind(code: u8) -> Result<Kind, Halt> {
    Ok(match code {
        1..=3 => Kind::Fixed(1), // bool by either of its codes, i8
        4 | 5 => Kind::Varint(VARINT32_BYTES_MAX),
        6 => Kind::Varint(VARINT64_BYTES_MAX),
        7 => Kind::Fixed(8),
        8 => Kind::Bytes,
        9 | 10 => Kind::List,
        11 => Kind::Map,
        12 => Kind::Struct,
        13 => Kind::Fixed(16),
        _ => return Err(Broken::BadType { code }.into()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use thrift::protocol::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { bytes_max: 1_000_000, depth_max: 64 };
    const BOTH: [Protocol; 2] = [Protocol::Binary, Protocol::Compact];

    /// A value of any type. Containers repeat one value, since their items are of one type.
    #[derive(Clone, Debug)]
    enum Value {
        Bool(bool),
        I8(i8),
        I16(i16),
        I32(i32),
        I64(i64),
        Double(f64),
        Bytes(Vec<u8>),
        Struct(Vec<(i16, Value)>),
        List(Box<Value>, usize),
        Set(Box<Value>, usize),
        Map(Box<Value>, Box<Value>, usize),
    }

    impl Value {
        fn kind(&self) -> TType {
            match self {
                Value::Bool(_) => TType::Bool,
                Value::I8(_) => TType::I08,
                Value::I16(_) => TType::I16,
                Value::I32(_) => TType::I32,
                Value::I64(_) => TType::I64,
                Value::Double(_) => TType::Double,
                Value::Bytes(_) => TType::String,
                Value::Struct(_) => TType::Struct,
                Value::List(..) => TType::List,
                Value::Set(..) => TType::Set,
                Value::Map(..) => TType::Map,
            }
        }

        fn write(&self, out: &mut dyn TOutputProtocol) -> thrift::Result<()> {
            match self {
                Value::Bool(value) => out.write_bool(*value),
                Value::I8(value) => out.write_i8(*value),
                Value::I16(value) => out.write_i16(*value),
                Value::I32(value) => out.write_i32(*value),
                Value::I64(value) => out.write_i64(*value),
                Value::Double(value) => out.write_double(*value),
                Value::Bytes(value) => out.write_bytes(value),
                Value::Struct(fields) => write_struct(fields, out),
                Value::List(item, count) => {
                    out.write_list_begin(&TListIdentifier::new(item.kind(), *count as i32))?;
                    (0..*count).try_for_each(|_| item.write(out))
                }
                Value::Set(item, count) => {
                    out.write_set_begin(&TSetIdentifier::new(item.kind(), *count as i32))?;
                    (0..*count).try_for_each(|_| item.write(out))
                }
                Value::Map(key, value, count) => {
                    out.write_map_begin(&TMapIdentifier::new(key.kind(), value.kind(), *count as i32))?;
                    (0..*count).try_for_each(|_| key.write(out).and_then(|()| value.write(out)))
                }
            }
        }
    }

    fn write_struct(fields: &[(i16, Value)], out: &mut dyn TOutputProtocol) -> thrift::Result<()> {
        out.write_struct_begin(&TStructIdentifier::new("s"))?;
        for (id, value) in fields {
            out.write_field_begin(&TFieldIdentifier::new("f", value.kind(), *id))?;
            value.write(out)?;
            out.write_field_end()?;
        }
        out.write_field_stop()?;
        out.write_struct_end()
    }

    fn message(protocol: Protocol, sequence: i32, name: &str, fields: &[(i16, Value)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let write = |out: &mut dyn TOutputProtocol| {
            out.write_message_begin(&TMessageIdentifier::new(name, TMessageType::Call, sequence))?;
            write_struct(fields, out)
        };
        match protocol {
            Protocol::Binary => write(&mut TBinaryOutputProtocol::new(&mut bytes, true)),
            Protocol::Compact => write(&mut TCompactOutputProtocol::new(&mut bytes)),
        }
        .unwrap();
        bytes
    }

    fn any_fields(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Vec<(i16, Value)>> {
        vec((-16_000i16..16_000, value), 0..5) // the crate subtracts neighbours in 16 bits
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            any::<i8>().prop_map(Value::I8),
            any::<i16>().prop_map(Value::I16),
            any::<i32>().prop_map(Value::I32),
            any::<i64>().prop_map(Value::I64),
            any::<f64>().prop_map(Value::Double),
            vec(any::<u8>(), 0..300).prop_map(Value::Bytes),
        ];
        leaf.prop_recursive(5, 60, 5, |inner| {
            let counted = || (inner.clone().prop_map(Box::new), 0usize..8);
            prop_oneof![
                any_fields(inner.clone()).prop_map(Value::Struct),
                counted().prop_map(|(item, count)| Value::List(item, count)),
                counted().prop_map(|(item, count)| Value::Set(item, count)),
                (inner.clone().prop_map(Box::new), counted())
                    .prop_map(|(key, (value, count))| Value::Map(key, value, count)),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_message_in_any_pieces_ends_where_it_ends(
            fields in any_fields(any_value()),
            sequence in any::<i32>(),
            name in "[a-zA-Z]{0,40}",
            pieces in vec(1usize..200, 1..20),
            after in vec(any::<u8>(), 0..20),
        ) {
            for protocol in BOTH {
                let mut bytes = message(protocol, sequence, &name, &fields);
                let end = bytes.len();
                bytes.extend_from_slice(&after);
                // Nested repetitions can make it longer than BOUNDS has it.
                let mut scanner = Scanner::new(protocol, Bounds { bytes_max: end, ..BOUNDS });
                let mut there = 0;
                let found = pieces.iter().cycle().find_map(|piece| {
                    there = (there + piece).min(bytes.len());
                    scanner.end(&bytes[..there]).unwrap()
                });
                prop_assert_eq!(found, Some(end));
                prop_assert!(there < end + 200, "it was found as soon as it was there");
            }
        }

        #[test]
        fn a_broken_message_never_panics_and_never_ends_past_its_bytes(
            fields in any_fields(any_value()),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            garbage in vec(any::<u8>(), 0..300),
        ) {
            for protocol in BOTH {
                let mut bytes = message(protocol, 1, "get", &fields);
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                bytes.extend_from_slice(&garbage);
                if let Ok(Some(end)) = Scanner::new(protocol, BOUNDS).end(&bytes) {
                    prop_assert!(end <= bytes.len());
                }
            }
        }

        #[test]
        fn garbage_after_a_header_never_panics(garbage in vec(any::<u8>(), 0..300)) {
            for protocol in BOTH {
                let mut bytes = message(protocol, 1, "get", &[]);
                bytes.pop(); // the stop
                bytes.extend_from_slice(&garbage);
                let _ = Scanner::new(protocol, BOUNDS).end(&bytes);
            }
            for protocol in BOTH {
                let _ = Scanner::new(protocol, BOUNDS).end(&garbage);
            }
        }
    }

    /// A message up to where the header of its first field would stand.
    fn opened(protocol: Protocol) -> Vec<u8> {
        let mut bytes = message(protocol, 1, "get", &[]);
        bytes.pop();
        bytes
    }

    fn refused(protocol: Protocol, then: &[u8]) -> Broken {
        let mut bytes = opened(protocol);
        bytes.extend_from_slice(then);
        Scanner::new(protocol, BOUNDS).end(&bytes).unwrap_err()
    }

    #[test]
    fn one_message_after_the_other_is_found() {
        for protocol in BOTH {
            let first = message(protocol, 1, "get", &[(1, Value::Bytes(vec![7; 500]))]);
            let second = message(protocol, -2, "put", &[(1, Value::I64(-1))]);
            let both = [first.clone(), second.clone()].concat();
            let mut scanner = Scanner::new(protocol, BOUNDS);
            assert_eq!(scanner.end(&both), Ok(Some(first.len())));
            assert_eq!(scanner.end(&both[first.len()..]), Ok(Some(second.len())));
        }
    }

    #[test]
    fn lengths_past_the_bound_are_refused_at_the_length() {
        let too_long = Broken::TooLong { bytes_max: BOUNDS.bytes_max };
        for (bytes, why) in [
            (&[11, 0, 1, 0x7f, 0xff, 0xff, 0xff][..], &too_long), // a string of 2 GB
            (&[11, 0, 1, 0xff, 0xff, 0xff, 0xff], &Broken::NegativeLength),
            (&[15, 0, 1, 8, 0x01, 0x31, 0x2d, 0x00], &too_long), // 20 million i32
            (&[15, 0, 1, 12, 0x01, 0x31, 0x2d, 0x00], &too_long), // 20 million structs
            (&[15, 0, 1, 12, 0x80, 0, 0, 0], &Broken::NegativeLength),
            (&[13, 0, 1, 11, 11, 0x00, 0x02, 0x00, 0x00], &too_long), // 131,072 entries of at least 8 bytes
        ] {
            assert_eq!(&refused(Protocol::Binary, bytes), why, "{bytes:?}");
        }
        for (bytes, why) in [
            (&[0x18, 0xff, 0xff, 0xff, 0xff, 0x07][..], &too_long),
            (&[0x18, 0xff, 0xff, 0xff, 0xff, 0x0f], &Broken::NegativeLength),
            (&[0x19, 0xf5, 0x80, 0xda, 0xc4, 0x09], &too_long), // 20 million i32
            (&[0x1b, 0x80, 0xda, 0xc4, 0x09, 0x88], &too_long),
            (&[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], &Broken::LongVarint { bytes_max: 5 }),
            (
                &[0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
                &Broken::LongVarint { bytes_max: 10 },
            ),
        ] {
            assert_eq!(&refused(Protocol::Compact, bytes), why, "{bytes:?}");
        }
    }

    #[test]
    fn a_message_as_long_as_the_bound_passes_and_one_byte_more_does_not() {
        for protocol in BOTH {
            let bytes = message(protocol, 1, "get", &[(1, Value::Bytes(vec![7; 500]))]);
            let fits = Bounds { bytes_max: bytes.len(), ..BOUNDS };
            assert_eq!(Scanner::new(protocol, fits).end(&bytes), Ok(Some(bytes.len())));
            let short = Bounds { bytes_max: bytes.len() - 1, ..BOUNDS };
            let why = Broken::TooLong { bytes_max: bytes.len() - 1 };
            assert_eq!(Scanner::new(protocol, short).end(&bytes), Err(why));
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_a_wide_message_is_not() {
        assert_eq!(refused(Protocol::Binary, &[12, 0, 1].repeat(1000)), Broken::TooDeep { depth_max: 64 });
        assert_eq!(refused(Protocol::Compact, &[0x1c; 1000]), Broken::TooDeep { depth_max: 64 });
        // A field that is a list of one list of one list …
        assert_eq!(refused(Protocol::Compact, &[0x19; 1000]), Broken::TooDeep { depth_max: 64 });
        let wide = Value::List(Box::new(Value::Struct(Vec::new())), 1000);
        for protocol in BOTH {
            let bytes = message(protocol, 1, "get", &[(1, wide.clone())]);
            assert_eq!(Scanner::new(protocol, BOUNDS).end(&bytes), Ok(Some(bytes.len())));
        }
    }

    #[test]
    fn types_that_do_not_exist_are_refused_and_matter_not_in_an_empty_list() {
        assert_eq!(refused(Protocol::Binary, &[1, 0, 1]), Broken::BadType { code: 1 }); // void
        assert_eq!(refused(Protocol::Binary, &[99, 0, 1]), Broken::BadType { code: 99 });
        assert_eq!(refused(Protocol::Binary, &[15, 0, 1, 0, 0, 0, 0, 1]), Broken::BadType { code: 0 });
        assert_eq!(refused(Protocol::Compact, &[0x1e]), Broken::BadType { code: 14 });
        assert_eq!(refused(Protocol::Compact, &[0x19, 0x10]), Broken::BadType { code: 0 });
        let mut empty = opened(Protocol::Binary);
        empty.extend_from_slice(&[15, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Scanner::new(Protocol::Binary, BOUNDS).end(&empty), Ok(Some(empty.len())));
    }

    #[test]
    fn a_message_of_another_protocol_is_refused() {
        for (protocol, other) in [BOTH, [BOTH[1], BOTH[0]]].map(|[a, b]| (a, b)) {
            let bytes = message(other, 1, "get", &[]);
            assert_eq!(Scanner::new(protocol, BOUNDS).end(&bytes), Err(Broken::BadHeader));
        }
    }

    #[test]
    fn a_long_string_costs_one_comparison_a_read() {
        let mut bytes = opened(Protocol::Binary);
        bytes.extend_from_slice(&[11, 0, 1, 0x00, 0x0f, 0x00, 0x00]);
        let mut scanner = Scanner::new(Protocol::Binary, BOUNDS);
        assert_eq!(scanner.end(&bytes), Ok(None));
        assert_eq!(scanner.bytes_min(), bytes.len() + 0x0f_0000 + 1); // the string, and the stop after it
    }
}

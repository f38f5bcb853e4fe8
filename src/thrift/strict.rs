//! Refuses a field whose wire type is not the declared one.
//!
//! Generated readers look at a field's number only: a `key` sent as i64 would read as key 0, a `time` sent as a double
//! as the double's bits. [`Strict`] stands between the reader and the real protocol, remembers the type that came with
//! each field, element or entry, and fails when something else is read.

use thrift::protocol::{
    TFieldIdentifier, TInputProtocol, TListIdentifier, TMapIdentifier, TMessageIdentifier, TSetIdentifier,
    TStructIdentifier, TType,
};
use thrift::{Error, ProtocolError, ProtocolErrorKind, Result};

/// Nested structs, fields and containers of every common message: room for them is made once.
const DEPTH: usize = 8;

/// A protocol that checks wire types.
pub struct Strict<P> {
    inner: P,
    /// The name of nothing, but the number of the field being read: for the message.
    field: i16,
    /// What was announced and not yet read, the innermost last.
    announced: Vec<Announced>,
}

/// What the wire said comes next.
#[derive(Clone, Copy)]
enum Announced {
    /// One value of this type, as a field.
    Field(TType),
    /// Values of this type, as elements of a list or set.
    Elements(TType),
    /// Values of these two types alternately, the keys and values of a map; true: a key is next.
    Entries(TType, TType, bool),
    /// Fields, each announced on its own.
    Struct,
}

impl<P> Strict<P> {
    /// Wraps `inner`, whose next value is a struct.
    pub fn new(inner: P) -> Strict<P> {
        Strict { inner, field: 0, announced: Vec::with_capacity(DEPTH) }
    }

    fn expect(&mut self, wanted: TType) -> Result<()> {
        let came = match self.announced.last_mut() {
            None | Some(Announced::Struct) => return Ok(()),
            Some(Announced::Field(came)) | Some(Announced::Elements(came)) => *came,
            Some(Announced::Entries(key, value, key_is_next)) => {
                let came = if *key_is_next { *key } else { *value };
                *key_is_next = !*key_is_next;
                came
            }
        };
        if came == wanted || (came == TType::Utf7 && wanted == TType::String) {
            return Ok(());
        }
        let message = format!("field {}: expected {wanted}, got {came}", self.field);
        Err(Error::Protocol(ProtocolError { kind: ProtocolErrorKind::InvalidData, message }))
    }
}

macro_rules! checked {
    ($($method:ident -> $value:ty = $kind:ident),*) => { $(
        fn $method(&mut self) -> Result<$value> {
            self.expect(TType::$kind)?;
            self.inner.$method()
        }
    )* };
}

impl<P: TInputProtocol> TInputProtocol for Strict<P> {
    checked!(
        read_bool -> bool = Bool,
        read_i8 -> i8 = I08,
        read_i16 -> i16 = I16,
        read_i32 -> i32 = I32,
        read_i64 -> i64 = I64,
        read_double -> f64 = Double,
        read_string -> String = String,
        read_bytes -> Vec<u8> = String,
        read_uuid -> uuid::Uuid = Uuid
    );

    fn read_message_begin(&mut self) -> Result<TMessageIdentifier> {
        self.inner.read_message_begin()
    }

    fn read_message_end(&mut self) -> Result<()> {
        self.inner.read_message_end()
    }

    fn read_struct_begin(&mut self) -> Result<Option<TStructIdentifier>> {
        self.expect(TType::Struct)?;
        self.announced.push(Announced::Struct);
        self.inner.read_struct_begin()
    }

    fn read_struct_end(&mut self) -> Result<()> {
        self.announced.pop();
        self.inner.read_struct_end()
    }

    fn read_field_begin(&mut self) -> Result<TFieldIdentifier> {
        let field = self.inner.read_field_begin()?;
        if field.field_type != TType::Stop {
            self.field = field.id.unwrap_or(0);
            self.announced.push(Announced::Field(field.field_type));
        }
        Ok(field)
    }

    fn read_field_end(&mut self) -> Result<()> {
        self.announced.pop();
        self.inner.read_field_end()
    }

    fn read_list_begin(&mut self) -> Result<TListIdentifier> {
        self.expect(TType::List)?;
        let list = self.inner.read_list_begin()?;
        self.announced.push(Announced::Elements(list.element_type));
        Ok(list)
    }

    fn read_list_end(&mut self) -> Result<()> {
        self.announced.pop();
        self.inner.read_list_end()
    }

    fn read_set_begin(&mut self) -> Result<TSetIdentifier> {
        self.expect(TType::Set)?;
        let set = self.inner.read_set_begin()?;
        self.announced.push(Announced::Elements(set.element_type));
        Ok(set)
    }

    fn read_set_end(&mut self) -> Result<()> {
        self.announced.pop();
        self.inner.read_set_end()
    }

    fn read_map_begin(&mut self) -> Result<TMapIdentifier> {
        self.expect(TType::Map)?;
        let map = self.inner.read_map_begin()?;
        let (key, value) = (map.key_type.unwrap_or(TType::Stop), map.value_type.unwrap_or(TType::Stop));
        self.announced.push(Announced::Entries(key, value, true));
        Ok(map)
    }

    fn read_map_end(&mut self) -> Result<()> {
        self.announced.pop();
        self.inner.read_map_end()
    }

    fn read_byte(&mut self) -> Result<u8> {
        self.inner.read_byte()
    }

    /// Unknown fields are skipped unchecked: nobody reads them.
    fn skip(&mut self, field_type: TType) -> Result<()> {
        self.inner.skip(field_type)
    }
}

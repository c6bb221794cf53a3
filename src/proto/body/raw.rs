//! Bodies that are bytes as they are. A type can be one if serde sees bytes, text, a list or a tuple of `u8`, a newtype of one
//! of these, or nothing at all: `Bytes`, `Vec<u8>`, `[u8; N]`, `String`, `()`. `Bytes` and text go in one piece, the others
//! byte by byte. Every other type is refused, both ways.

use serde::de::value::SeqDeserializer;
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde::ser::{Impossible, Serialize, SerializeSeq, SerializeTuple, SerializeTupleStruct, Serializer};

use super::Why;

const NOT_BYTES: Why =
    Why::Unsupported("it carries bytes as they are: Bytes, Vec<u8>, [u8; N], String or (); use json or bincode");

/// Appends the bytes that `value` is.
pub(super) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), Why> {
    value.serialize(Whole(out))
}

/// The value that these bytes are.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Why> {
    T::deserialize(Body(body))
}

/// Methods of a serializer for what is not bytes.
macro_rules! refuse {
    ($($method:ident($($argument:ty),*);)*) => {$(
        fn $method(self, $(_: $argument),*) -> Result<(), Why> {
            Err(NOT_BYTES)
        }
    )*};
}

/// What both serializers refuse.
macro_rules! refuse_what_is_never_bytes {
    () => {
        type Ok = ();
        type Error = Why;
        type SerializeTupleVariant = Impossible<(), Why>;
        type SerializeMap = Impossible<(), Why>;
        type SerializeStruct = Impossible<(), Why>;
        type SerializeStructVariant = Impossible<(), Why>;

        refuse! {
            serialize_bool(bool); serialize_char(char); serialize_f32(f32); serialize_f64(f64); serialize_none();
            serialize_i8(i8); serialize_i16(i16); serialize_i32(i32); serialize_i64(i64); serialize_i128(i128);
            serialize_u16(u16); serialize_u32(u32); serialize_u64(u64); serialize_u128(u128);
            serialize_unit_variant(&'static str, u32, &'static str);
        }

        fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<(), Why> {
            Err(NOT_BYTES)
        }

        fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Why> {
            value.serialize(self)
        }

        fn serialize_newtype_variant<T: Serialize + ?Sized>(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: &T,
        ) -> Result<(), Why> {
            Err(NOT_BYTES)
        }

        fn serialize_tuple_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeTupleVariant, Why> {
            Err(NOT_BYTES)
        }

        fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Why> {
            Err(NOT_BYTES)
        }

        fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeStruct, Why> {
            Err(NOT_BYTES)
        }

        fn serialize_struct_variant(
            self,
            _: &'static str,
            _: u32,
            _: &'static str,
            _: usize,
        ) -> Result<Self::SerializeStructVariant, Why> {
            Err(NOT_BYTES)
        }
    };
}

/// Writes a whole body.
struct Whole<'a>(&'a mut Vec<u8>);

impl<'a> Serializer for Whole<'a> {
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;

    refuse_what_is_never_bytes!();
    refuse! { serialize_u8(u8); }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Why> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn serialize_str(self, text: &str) -> Result<(), Why> {
        self.serialize_bytes(text.as_bytes())
    }

    fn serialize_unit(self) -> Result<(), Why> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Why> {
        Ok(())
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self, Why> {
        self.0.reserve(length.unwrap_or(0));
        Ok(self)
    }

    fn serialize_tuple(self, length: usize) -> Result<Self, Why> {
        self.serialize_seq(Some(length))
    }

    fn serialize_tuple_struct(self, _: &'static str, length: usize) -> Result<Self, Why> {
        self.serialize_seq(Some(length))
    }
}

/// The three kinds of list differ in names only.
macro_rules! lists_of_bytes {
    ($($kind:ident $method:ident)*) => {$(
        impl $kind for Whole<'_> {
            type Ok = ();
            type Error = Why;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Why> {
                value.serialize(Item(self.0))
            }

            fn end(self) -> Result<(), Why> {
                Ok(())
            }
        }
    )*};
}

lists_of_bytes! { SerializeSeq serialize_element SerializeTuple serialize_element SerializeTupleStruct serialize_field }

/// Writes an item of a list: one byte.
struct Item<'a>(&'a mut Vec<u8>);

impl Serializer for Item<'_> {
    type SerializeSeq = Impossible<(), Why>;
    type SerializeTuple = Impossible<(), Why>;
    type SerializeTupleStruct = Impossible<(), Why>;

    refuse_what_is_never_bytes!();
    refuse! { serialize_bytes(&[u8]); serialize_str(&str); serialize_unit(); serialize_unit_struct(&'static str); }

    fn serialize_u8(self, byte: u8) -> Result<(), Why> {
        self.0.push(byte);
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self::SerializeSeq, Why> {
        Err(NOT_BYTES)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Why> {
        Err(NOT_BYTES)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, Why> {
        Err(NOT_BYTES)
    }
}

/// Reads a whole body.
struct Body<'de>(&'de [u8]);

impl<'de> Deserializer<'de> for Body<'de> {
    type Error = Why;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Why> {
        Err(NOT_BYTES)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_borrowed_bytes(self.0)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_borrowed_bytes(self.0)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_borrowed_str(std::str::from_utf8(self.0).map_err(|_| Why::Invalid("it is not UTF-8 text".into()))?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        self.deserialize_str(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        let mut items = SeqDeserializer::new(self.0.iter().copied().map(Byte));
        let value = visitor.visit_seq(&mut items)?;
        items.end()?;
        Ok(value)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Why> {
        if self.0.len() == length {
            self.deserialize_seq(visitor)
        } else {
            Err(Why::Invalid(format!("{} bytes where {length} are expected", self.0.len()).into()))
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, length: usize, visitor: V) -> Result<V::Value, Why> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        if self.0.is_empty() { visitor.visit_unit() } else { Err(Why::Invalid("bytes where none are expected".into())) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Why> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char option map struct enum identifier ignored_any
    }
}

/// Reads an item of a list: one byte, and for nothing but a `u8`.
struct Byte(u8);

impl<'de> IntoDeserializer<'de, Why> for Byte {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Byte {
    type Error = Why;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Why> {
        Err(NOT_BYTES)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_u8(self.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

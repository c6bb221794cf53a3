//! Bodies in bincode. Writing is bincode's own; reading is ours, because bincode through serde lets ten bytes set aside a
//! mebibyte, a list of nothing count without end and a type that holds itself overflow the stack.
//!
//! The format is bincode 2's standard one: little endian; integers above 250 as a byte (251 to 254) and 2, 4, 8 or 16 bytes,
//! signed ones zigzag first; `u8`, `i8` and floats as they are; lists, maps, text and bytes after their length; an option
//! after 0 or 1; an enum after its variant's number; structs and tuples are their fields. The tests hold it to bincode.
//!
//! Beyond [`Bounds`], which count levels and memory: no list is longer than the bytes that are left, and all lists together
//! have no more items than the body has bytes, items of no bytes too.

use std::borrow::Cow;

use serde::de::value::U32Deserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::Why;
use super::bounds::Bounds;
use crate::proto::limits;

/// Most items a list is told to make room for before the first has been read.
const ROOM: usize = 16;

const SELF_DESCRIBING: Why = Why::Unsupported(
    "its bytes do not say what they are, so types that ask (untagged, tagged or flattened ones, serde_json::Value) cannot be read; use json",
);

/// The value that `body` holds, all of it.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Why> {
    let mut reader = Reader::new(body);
    let value = T::deserialize(&mut reader)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(invalid("bytes are left after the value")) }
}

struct Reader<'de> {
    rest: &'de [u8],
    /// Items that lists may still have.
    items: usize,
    bounds: Bounds,
}

impl<'de> Reader<'de> {
    fn new(body: &'de [u8]) -> Self {
        Self { rest: body, items: body.len(), bounds: Bounds::new(body.len(), limits::BODY_DEPTH) }
    }

    fn take(&mut self, count: usize) -> Result<&'de [u8], Why> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| invalid("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Why> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| invalid("it ends too early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, Why> {
        self.array().map(|[byte]| byte)
    }

    /// An integer of up to 64 bits, in its shortest form.
    #[inline]
    fn unsigned(&mut self) -> Result<u64, Why> {
        match self.byte()? {
            byte @ ..=250 => Ok(u64::from(byte)),
            tag => self.long(tag),
        }
    }

    fn long(&mut self, tag: u8) -> Result<u64, Why> {
        let (value, least) = match tag {
            251 => (u64::from(u16::from_le_bytes(self.array()?)), 251),
            252 => (u64::from(u32::from_le_bytes(self.array()?)), 1 << 16),
            253 => (u64::from_le_bytes(self.array()?), 1 << 32),
            _ => return Err(invalid("an integer is out of range")),
        };
        if value >= least { Ok(value) } else { Err(invalid("an integer is written longer than it need be")) }
    }

    fn unsigned128(&mut self) -> Result<u128, Why> {
        if self.rest.first() != Some(&254) {
            return self.unsigned().map(u128::from);
        }
        self.take(1)?;
        let value = u128::from_le_bytes(self.array()?);
        if value >> 64 != 0 { Ok(value) } else { Err(invalid("an integer is written longer than it need be")) }
    }

    fn signed(&mut self) -> Result<i64, Why> {
        self.unsigned().map(|zigzag| (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    /// A length that the bytes left can hold.
    fn length(&mut self) -> Result<usize, Why> {
        let length = usize::try_from(self.unsigned()?).unwrap_or(usize::MAX);
        if length <= self.rest.len() { Ok(length) } else { Err(invalid("a length is above the bytes that are left")) }
    }

    fn str(&mut self) -> Result<&'de str, Why> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| invalid("text is not UTF-8"))
    }

    /// The number of items of a list.
    fn list(&mut self) -> Result<usize, Why> {
        let length = self.length()?;
        self.items = self.items.checked_sub(length).ok_or_else(|| invalid("more items than the body has bytes"))?;
        Ok(length)
    }

    /// Reads a `T` one level down.
    #[inline]
    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Why>) -> Result<T, Why> {
        let around = self.bounds.enter::<T>()?;
        let value = read(self)?;
        self.bounds.leave(around);
        Ok(value)
    }
}

#[cold]
fn invalid(why: &'static str) -> Why {
    Why::Invalid(Cow::Borrowed(why))
}

/// The methods that read one integer.
macro_rules! integers {
    ($($method:ident $visit:ident $read:ident,)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
            let value = self.$read()?.try_into().map_err(|_| invalid("an integer is out of range"))?;
            visitor.$visit(value)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Why;

    integers! {
        deserialize_u8 visit_u8 byte,
        deserialize_u16 visit_u16 unsigned,
        deserialize_u32 visit_u32 unsigned,
        deserialize_u64 visit_u64 unsigned,
        deserialize_u128 visit_u128 unsigned128,
        deserialize_i16 visit_i16 signed,
        deserialize_i32 visit_i32 signed,
        deserialize_i64 visit_i64 signed,
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_i8(self.byte()?.cast_signed())
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        let zigzag = self.unsigned128()?;
        visitor.visit_i128((zigzag >> 1) as i128 ^ -((zigzag & 1) as i128))
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_f32(f32::from_le_bytes(self.array()?))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_f64(f64::from_le_bytes(self.array()?))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        match self.byte()? {
            byte @ 0..=1 => visitor.visit_bool(byte == 1),
            _ => Err(invalid("a bool is neither 0 nor 1")),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        let width = match self.rest.first() {
            Some(0xc0..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..) => 4,
            _ => 1,
        };
        let text = std::str::from_utf8(self.take(width)?).ok();
        visitor.visit_char(text.and_then(|text| text.chars().next()).ok_or_else(|| invalid("a character is not UTF-8"))?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_borrowed_str(self.str()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_borrowed_str(self.str()?)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        let length = self.length()?;
        visitor.visit_borrowed_bytes(self.take(length)?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        self.nested(|reader| match reader.byte()? {
            0 => visitor.visit_none(),
            1 => visitor.visit_some(reader),
            _ => Err(invalid("an option is neither 0 nor 1")),
        })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Why> {
        self.nested(|reader| visitor.visit_newtype_struct(reader))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Why> {
        self.nested(|reader| visitor.visit_seq(Fields { reader, left: length }))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, length: usize, visitor: V) -> Result<V::Value, Why> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Why> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Why> {
        self.nested(|reader| visitor.visit_enum(reader))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        self.nested(|reader| {
            let mut left = reader.list()?;
            let value = visitor.visit_seq(Items { reader, left: &mut left })?;
            if left == 0 { Ok(value) } else { Err(invalid("a list has more items than its type takes")) }
        })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Why> {
        self.nested(|reader| {
            let mut left = reader.list()?;
            let value = visitor.visit_map(Items { reader, left: &mut left })?;
            if left == 0 { Ok(value) } else { Err(invalid("a map has more entries than its type takes")) }
        })
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Why> {
        Err(SELF_DESCRIBING)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Why> {
        Err(SELF_DESCRIBING)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Why> {
        Err(SELF_DESCRIBING)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The fields of a struct or a tuple.
struct Fields<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Fields<'_, 'de> {
    type Error = Why;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Why> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// The items of a list or the entries of a map.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: &'a mut usize,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Why;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Why> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        *self.left = left;
        self.reader.bounds.item::<T::Value>()?;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(ROOM.min(*self.left))
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = Why;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Why> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Why> {
        self.reader.bounds.item::<V::Value>()?;
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        SeqAccess::size_hint(self)
    }
}

impl<'de> EnumAccess<'de> for &mut Reader<'de> {
    type Error = Why;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Why> {
        let number = u32::try_from(self.unsigned()?).map_err(|_| invalid("an integer is out of range"))?;
        let number: U32Deserializer<Why> = number.into_deserializer();
        Ok((seed.deserialize(number)?, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Reader<'de> {
    type Error = Why;

    fn unit_variant(self) -> Result<(), Why> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Why> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Why> {
        visitor.visit_seq(Fields { reader: self, left: length })
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Why> {
        self.tuple_variant(fields.len(), visitor)
    }
}

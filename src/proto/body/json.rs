//! Bodies in JSON: serde_json, held to [`Bounds`]. serde_json bounds how deep brackets nest; it cannot know that a type holds
//! itself without any, nor how large the items of a list are.

use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::bounds::{Bounds, Exceeded};

/// Deepest nesting: serde_json's own bound.
const LEVELS: usize = 128;

/// The value that `body` holds, all of it.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let mut bounds = Bounds::new(body.len(), LEVELS);
    let value = T::deserialize(Bounded { inner: &mut json, bounds: &mut bounds, fields: false })?;
    json.end()?;
    Ok(value)
}

/// Any of serde's reading roles, with the bounds watched on the way in.
struct Bounded<'b, T> {
    inner: T,
    bounds: &'b mut Bounds,
    /// What is read next are fields, which lie in their struct, not items of a list.
    fields: bool,
}

impl<T> Bounded<'_, T> {
    /// Reads a `V` one level down.
    fn nested<V, E: Error>(self, fields: bool, read: impl FnOnce(T, &mut Bounds, bool) -> Result<V, E>) -> Result<V, E> {
        let around = self.bounds.enter::<V>().map_err(exceeded)?;
        let value = read(self.inner, self.bounds, fields)?;
        self.bounds.leave(around);
        Ok(value)
    }

    /// Counts a `V` that is read next, if it is an item of a list.
    fn item<V, E: Error>(&mut self) -> Result<(), E> {
        if self.fields { Ok(()) } else { self.bounds.item::<V>().map_err(exceeded) }
    }
}

fn exceeded<E: Error>(exceeded: Exceeded) -> E {
    E::custom(exceeded.text())
}

/// Methods that read something flat.
macro_rules! flat {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        }
    )*};
}

/// Methods that read something with values in it.
macro_rules! nested {
    ($($method:ident($($name:ident: $argument:ty),*) $fields:literal,)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($name: $argument,)* visitor: V) -> Result<V::Value, D::Error> {
            self.nested($fields, |inner, bounds, fields| inner.$method($($name,)* Bounded { inner: visitor, bounds, fields }))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Bounded<'_, D> {
    type Error = D::Error;

    flat! {
        deserialize_bool deserialize_char deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
        deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf deserialize_unit
        deserialize_identifier deserialize_ignored_any
    }

    nested! {
        deserialize_any() false,
        deserialize_option() false,
        deserialize_newtype_struct(name: &'static str) false,
        deserialize_seq() false,
        deserialize_map() false,
        deserialize_tuple(length: usize) true,
        deserialize_tuple_struct(name: &'static str, length: usize) true,
        deserialize_struct(name: &'static str, names: &'static [&'static str]) true,
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) true,
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Methods of a visitor that are given a value.
macro_rules! given {
    ($($method:ident($argument:ty);)*) => {$(
        fn $method<E: Error>(self, value: $argument) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Bounded<'_, V> {
    type Value = V::Value;

    given! {
        visit_bool(bool); visit_char(char); visit_i8(i8); visit_i16(i16); visit_i32(i32); visit_i64(i64); visit_i128(i128);
        visit_u8(u8); visit_u16(u16); visit_u32(u32); visit_u64(u64); visit_u128(u128); visit_f32(f32); visit_f64(f64);
        visit_str(&str); visit_borrowed_str(&'de str); visit_string(String);
        visit_bytes(&[u8]); visit_borrowed_bytes(&'de [u8]); visit_byte_buf(Vec<u8>);
    }

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Bounded { inner, bounds: self.bounds, fields: false })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Bounded { inner, bounds: self.bounds, fields: false })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(Bounded { inner, bounds: self.bounds, fields: self.fields })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Bounded { inner, bounds: self.bounds, fields: self.fields })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(Bounded { inner, bounds: self.bounds, fields: true })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Bounded<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Bounded { inner, bounds: self.bounds, fields: false })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.item::<T::Value, _>()?;
        self.inner.next_element_seed(Bounded { inner: seed, bounds: self.bounds, fields: self.fields })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        self.item::<K::Value, _>()?;
        self.inner.next_key_seed(Bounded { inner: seed, bounds: self.bounds, fields: self.fields })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.item::<V::Value, _>()?;
        self.inner.next_value_seed(Bounded { inner: seed, bounds: self.bounds, fields: self.fields })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, 'b, A: EnumAccess<'de>> EnumAccess<'de> for Bounded<'b, A> {
    type Error = A::Error;
    type Variant = Bounded<'b, A::Variant>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self::Variant), A::Error> {
        let (value, inner) = self.inner.variant_seed(seed)?;
        Ok((value, Bounded { inner, bounds: self.bounds, fields: true }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.newtype_variant_seed(Bounded { inner: seed, bounds: self.bounds, fields: false })
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(length, Bounded { inner: visitor, bounds: self.bounds, fields: true })
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, Bounded { inner: visitor, bounds: self.bounds, fields: true })
    }
}

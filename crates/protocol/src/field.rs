//! How one field of a message stands in JSON. `null` and absence both mean the default, and a field that holds its
//! default is left out, as the published JSON form has it; payloads are carried as the raw text they came in.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::value::RawValue;

/// A type that a message field can have.
pub(crate) trait Field: Sized + Default {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
    fn is_absent(&self) -> bool;
}

/// For `#[serde(deserialize_with)]`.
pub(crate) fn read<'de, D: Deserializer<'de>, T: Field>(deserializer: D) -> Result<T, D::Error> {
    T::read(deserializer)
}

/// For `#[serde(serialize_with)]`.
pub(crate) fn write<S: Serializer, T: Field>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    value.write(serializer)
}

macro_rules! plain_field {
    ($([$($generic:tt)*] $type:ty, |$value:ident| $absent:expr;)*) => {$(
        impl<$($generic)*> Field for $type {
            fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Option::<Self>::deserialize(deserializer)?.unwrap_or_default())
            }
            fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.serialize(serializer)
            }
            fn is_absent(&self) -> bool {
                let $value = self;
                $absent
            }
        }
    )*};
}

plain_field! {
    [] String, |text| text.is_empty();
    [] bool, |flag| !*flag;
    [] u32, |number| *number == 0;
    [] u64, |number| *number == 0;
    [] i32, |number| *number == 0;
    [] i64, |number| *number == 0;
    [T: Serialize + for<'a> Deserialize<'a>] Option<T>, |option| option.is_none();
    [T: Serialize + for<'a> Deserialize<'a>] Vec<T>, |list| list.is_empty();
    [T: Serialize + for<'a> Deserialize<'a>] BTreeMap<String, T>, |map| map.is_empty();
}

impl Field for Bytes {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if raw.get() == "null" {
            return Ok(Bytes::new());
        }
        Ok(Bytes::from(String::from(Box::<str>::from(raw))))
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_empty() {
            return serializer.serialize_unit();
        }
        let raw: &RawValue = serde_json::from_slice(self).map_err(S::Error::custom)?;
        let text = raw.get();
        // In valid JSON a line break can only stand between tokens, where a space means the same; left as it is, it
        // would cut the message in two.
        if text.contains('\n') || text.contains('\r') {
            let one_line = text.replace(['\n', '\r'], " ");
            return RawValue::from_string(one_line).map_err(S::Error::custom)?.serialize(serializer);
        }
        raw.serialize(serializer)
    }

    fn is_absent(&self) -> bool {
        self.is_empty()
    }
}

/// Reads a struct from an object alone. What serde derives would take an array of its fields as well, which nobody
/// published; the derived code is kept apart by `remote = "Self"` so that this can stand before it.
pub(crate) struct ObjectOnly<D>(pub D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for ObjectOnly<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Declares messages that exist in both encodings: one struct, `prost::Message` for Protobuf and serde for JSON.
/// A field is written `name: Type = (protobuf kind) number`; `always` behind it keeps the field in JSON when it holds
/// its default, which the published form does for a few fields that clients read without looking.
macro_rules! messages {
    ($(
        $(#[$about:meta])*
        $vis:vis struct $name:ident {
            $(
                $(#[$note:meta])*
                $field:ident: $type:ty = ($($kind:tt)+) $tag:literal $($always:ident)?,
            )*
        }
    )*) => {$(
        messages!(@one
            [$(#[$about])* $vis $name]
            []
            $( { [$(#[$note])*] $field: $type = ($($kind)+) $tag [$($always)?] } )*
        );
    )*};
    (@one [$(#[$about:meta])* $vis:vis $name:ident] [$($done:tt)*]) => {
        $(#[$about])*
        #[derive(Clone, PartialEq, prost::Message, serde::Serialize, serde::Deserialize)]
        #[serde(default, remote = "Self")]
        $vis struct $name { $($done)* }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Self::serialize(self, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::deserialize(crate::field::ObjectOnly(deserializer))
            }
        }
    };
    (@one [$(#[$about:meta])* $vis:vis $name:ident] [$($done:tt)*]
        { [$($note:tt)*] $field:ident: $type:ty = ($($kind:tt)+) $tag:literal [] } $($rest:tt)*
    ) => {
        messages!(@one [$(#[$about])* $vis $name] [$($done)*
            $($note)*
            #[prost($($kind)+, tag = $tag)]
            #[serde(
                deserialize_with = "crate::field::read",
                serialize_with = "crate::field::write",
                skip_serializing_if = "crate::field::Field::is_absent"
            )]
            pub $field: $type,
        ] $($rest)*);
    };
    (@one [$(#[$about:meta])* $vis:vis $name:ident] [$($done:tt)*]
        { [$($note:tt)*] $field:ident: $type:ty = ($($kind:tt)+) $tag:literal [always] } $($rest:tt)*
    ) => {
        messages!(@one [$(#[$about])* $vis $name] [$($done)*
            $($note)*
            #[prost($($kind)+, tag = $tag)]
            #[serde(deserialize_with = "crate::field::read", serialize_with = "crate::field::write")]
            pub $field: $type,
        ] $($rest)*);
    };
}
pub(crate) use messages;

//! How fields of requests are read where the derived decoders take too much or too little.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::request::Json;

/// Keeps `null` as a payload, where an `Option` would take it for absent.
pub(crate) fn with_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

/// A JSON object; the derived decoders alone would take an array of a struct's fields for the struct as well.
pub(crate) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Object)
    }
}

/// A whole body that is one object; the error says which field is wrong.
pub(crate) fn whole<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice::<Object<T>>(body).map(|object| object.0).map_err(|error| {
        // Read again with the path being kept, which good bodies need not pay for.
        let mut body = serde_json::Deserializer::from_slice(body);
        match serde_path_to_error::deserialize::<_, Object<T>>(&mut body) {
            Err(located) if located.path().iter().len() > 0 => format!("field {}: {error}", located.path()),
            _ => error.to_string(),
        }
    })
}

/// For fields that hold an object, or nothing.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// For fields that hold an integer, or nothing. As in JSON Schema, a number without a fraction is an integer however it
/// is written; the derived decoders refuse `1.0`.
pub(crate) fn integer<'de, D: Deserializer<'de>, T: TryFrom<i128>>(deserializer: D) -> Result<Option<T>, D::Error> {
    struct Integer;

    impl Visitor<'_> for Integer {
        type Value = i128;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an integer")
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<i128, E> {
            Ok(value.into())
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<i128, E> {
            Ok(value.into())
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<i128, E> {
            if value.fract() != 0.0 {
                return Err(E::invalid_type(Unexpected::Float(value), &self));
            }
            // Beyond the range of i128 it saturates, which is out of every field's range as well.
            Ok(value as i128)
        }
    }

    struct Whole(i128);

    impl<'de> Deserialize<'de> for Whole {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(Integer).map(Whole)
        }
    }

    let Some(Whole(value)) = Option::<Whole>::deserialize(deserializer)? else { return Ok(None) };
    let narrow = |_| D::Error::custom(format_args!("integer {value} is out of the field's range"));
    T::try_from(value).map_err(narrow).map(Some)
}

/// For a field that always holds an integer.
pub(crate) fn offset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    integer(deserializer)?.ok_or_else(|| D::Error::invalid_type(Unexpected::Unit, &"an integer"))
}

/// For fields that hold objects, or nothing.
pub(crate) fn objects<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let objects = Option::<Vec<Object<T>>>::deserialize(deserializer)?;
    Ok(objects.map(|objects| objects.into_iter().map(|object| object.0).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{HistoryRequest, InfoRequest, PublishRequest, SubscribeRequest};

    fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
        whole(text.as_bytes())
    }

    #[test]
    fn errors_name_the_field() {
        for (text, start) in [
            (r#"{"channel":5}"#, "field channel: invalid type: integer `5`, expected a string"),
            (r#"{"channel":"a","tags":{"k":1}}"#, "field tags.k: "),
        ] {
            let error = read::<PublishRequest>(text).map(|_| ()).unwrap_err();
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn integers_are_taken_however_they_are_written() {
        for (text, limit) in [("2", Some(2)), ("-1", Some(-1)), ("2.0", Some(2)), ("1e2", Some(100)), ("null", None)] {
            let request: HistoryRequest = read(&format!("{{\"limit\":{text}}}")).unwrap();
            assert_eq!(request.limit, limit, "{text}");
        }
        for text in ["1.5", "2147483648", "-2147483649", "1e300", "\"1\"", "true", "[1]"] {
            let error = read::<HistoryRequest>(&format!("{{\"limit\":{text}}}")).unwrap_err();
            assert!(error.contains("integer"), "{text}: {error}");
        }
        let request: PublishRequest = read(r#"{"version":18446744073709551615}"#).unwrap();
        assert_eq!(request.version, Some(u64::MAX));
        assert!(read::<PublishRequest>(r#"{"version":-1}"#).is_err());
    }

    #[test]
    fn arrays_and_scalars_are_no_objects() {
        for text in ["[]", "null", "1", "\"x\"", ""] {
            assert!(read::<InfoRequest>(text).is_err(), "{text}");
        }
        assert!(read::<InfoRequest>("{}").is_ok());
        let error = read::<SubscribeRequest>(r#"{"override":{"presence":[true]}}"#).unwrap_err();
        assert!(error.contains("an object"), "{error}");
    }

    #[test]
    fn null_means_absent_but_for_a_payload() {
        let request: SubscribeRequest =
            read(r#"{"user":null,"info":null,"data":null,"recover_since":null,"override":null,"expire_at":null}"#)
                .unwrap();
        assert!(request.user.is_none() && request.info.is_none() && request.recover_since.is_none());
        let request: PublishRequest = read(r#"{"channel":"a","data":null,"tags":null,"delta":null}"#).unwrap();
        assert_eq!(request.data.unwrap().get(), "null");
        assert!(read::<PublishRequest>(r#"{"channel":"a"}"#).unwrap().data.is_none());
    }

    #[test]
    fn a_payload_is_kept_as_it_was_written() {
        let request: PublishRequest = read("{\"data\": {\"b\" : 1.0,\n \"a\":1e400} }").unwrap();
        assert_eq!(request.data.unwrap().get(), "{\"b\" : 1.0,\n \"a\":1e400}");
    }
}

//! What a client put in the query string, the path and a JSON body.
//!
//! Refusals have the shape of FastAPI's validation errors, because MONAI Label's clients and their
//! authors know it; all faults of one request are told at once.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde_json::{Map, Value, json};

use super::error::{ApiError, FieldError};

/// Bodies that are read into memory (JSON objects, urlencoded forms) may be this long.
pub const SMALL_BODY_BYTES: usize = 1 << 20;

/// The query string: names with values, the last value of a name wins.
#[derive(Debug, Default)]
pub struct Query {
    fields: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Query {
    /// Reads fields with `read` and refuses the request when one of them was missing or unreadable.
    ///
    /// # Errors
    /// 422 with every fault that the readers met.
    pub fn read<T>(mut self, read: impl FnOnce(&mut Self) -> T) -> Result<T, ApiError> {
        let value = read(&mut self);
        if self.errors.is_empty() {
            Ok(value)
        } else {
            Err(ApiError::invalid(self.errors))
        }
    }

    /// A text that may be absent.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let found = self.fields.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    }

    /// A text that has to be there.
    pub fn required(&mut self, name: &'static str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.errors.push(FieldError::missing("query", name));
            String::new()
        })
    }

    /// A boolean in any of the spellings that MONAI Label takes.
    pub fn flag(&mut self, name: &'static str, default: bool) -> bool {
        let Some(text) = self.text(name) else {
            return default;
        };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => true,
            "false" | "0" | "no" | "off" | "f" | "n" => false,
            _ => {
                self.fault(
                    "bool_parsing",
                    name,
                    "Input should be a valid boolean, unable to interpret input",
                    text,
                );
                default
            }
        }
    }

    /// A whole number.
    pub fn integer(&mut self, name: &'static str, default: i64) -> i64 {
        let Some(text) = self.text(name) else {
            return default;
        };
        text.trim().parse().unwrap_or_else(|_| {
            self.fault(
                "int_parsing",
                name,
                "Input should be a valid integer, unable to parse string as an integer",
                text,
            );
            default
        })
    }

    /// One of `choices`; the first of them when absent.
    pub fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(name) else {
            return default;
        };
        if let Some((_, value)) = choices.iter().find(|(key, _)| *key == text) {
            return *value;
        }
        let expected = spell_choices(choices.iter().map(|(key, _)| *key));
        self.errors.push(FieldError {
            kind: "enum",
            at: vec!["query", name],
            message: format!("Input should be {expected}"),
            input: Value::String(text),
            context: Some(json!({ "expected": expected })),
        });
        default
    }

    fn fault(&mut self, kind: &'static str, name: &'static str, message: &str, input: String) {
        self.errors.push(FieldError {
            kind,
            at: vec!["query", name],
            message: message.to_owned(),
            input: Value::String(input),
            context: None,
        });
    }
}

/// `'a', 'b' or 'c'`
fn spell_choices<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.map(|name| format!("'{name}'")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self {
            fields: form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
            errors: Vec::new(),
        })
    }
}

/// The one variable segment of the path, percent-decoded; a `+` stays a `+`.
#[derive(Debug)]
pub struct Segment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(segment)) => Ok(Self(segment)),
            Err(_) => Err(ApiError::bad_request(
                "unreadable_path",
                "a part of the path is not UTF-8 after percent-decoding; nothing was done",
            )),
        }
    }
}

/// A JSON object as body, or no body at all.
#[derive(Debug)]
pub struct JsonObject(pub Option<Map<String, Value>>);

impl JsonObject {
    /// The object, empty when the client sent none.
    pub fn or_empty(self) -> Map<String, Value> {
        self.0.unwrap_or_default()
    }
}

impl<S: Send + Sync> FromRequest<S> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read_small(body).await?;
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        let content_type = parts.headers.get(CONTENT_TYPE);
        let is_json = content_type.is_none_or(|value| {
            let value = value.to_str().unwrap_or_default();
            let media = value.split(';').next().unwrap_or_default().trim();
            media.eq_ignore_ascii_case("application/json") || media.ends_with("+json")
        });
        if !is_json {
            return Err(not_a_dictionary(
                String::from_utf8_lossy(&bytes).into_owned().into(),
            ));
        }
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(Self(Some(object))),
            Ok(Value::Null) => Ok(Self(None)),
            Ok(other) => Err(not_a_dictionary(other)),
            Err(error) => Err(ApiError::invalid(vec![FieldError {
                kind: "json_invalid",
                at: vec!["body"],
                message: "JSON decode error".to_owned(),
                input: json!({}),
                context: Some(json!({ "error": error.to_string() })),
            }])),
        }
    }
}

fn not_a_dictionary(input: Value) -> ApiError {
    ApiError::invalid(vec![FieldError {
        kind: "dict_type",
        at: vec!["body"],
        message: "Input should be a valid dictionary".to_owned(),
        input,
        context: None,
    }])
}

/// The keys of `params` that `T` has; others are ignored.
///
/// # Errors
/// 400 when the value of such a key has another type.
pub fn typed<T: DeserializeOwned>(params: Map<String, Value>) -> Result<T, ApiError> {
    T::deserialize(Value::Object(params)).map_err(|error| {
        ApiError::bad_request(
            "bad_params",
            format!("the parameters cannot be used: {error}"),
        )
    })
}

/// For serde: a boolean; clients that read it from a widget send text or a number.
pub fn lenient_flag<'de, D: Deserializer<'de>>(input: D) -> Result<bool, D::Error> {
    match Value::deserialize(input)? {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(flag),
        Value::Number(number) => Ok(number.as_f64() != Some(0.0)),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "" | "false" | "0" | "no" | "off" | "none" => Ok(false),
            _ => Err(serde::de::Error::custom("expected true or false")),
        },
        _ => Err(serde::de::Error::custom("expected true or false")),
    }
}

/// A body that has to fit into memory.
///
/// # Errors
/// 413 when it is longer than [`SMALL_BODY_BYTES`], 408 when the client stopped sending, 400 when it left.
pub async fn read_small(body: Body) -> Result<axum::body::Bytes, ApiError> {
    let read = axum::body::to_bytes(body, SMALL_BODY_BYTES).await;
    read.map_err(|error| super::form::refusal(&error, SMALL_BODY_BYTES as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query {
            fields: form_urlencoded::parse(text.as_bytes())
                .into_owned()
                .collect(),
            errors: Vec::new(),
        }
    }

    #[test]
    fn flags_in_every_spelling() {
        for (text, value) in [
            ("True", true),
            ("1", true),
            ("YES", true),
            ("on", true),
            ("t", true),
            ("y", true),
            ("false", false),
            ("0", false),
            ("No", false),
            ("off", false),
            ("F", false),
            ("n", false),
        ] {
            let read = query(&format!("all={text}")).read(|q| q.flag("all", !value));
            assert_eq!(read.unwrap(), value, "{text}");
        }
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let refused = query("all=maybe&lines=x&output=y")
            .read(|q| {
                q.flag("all", false);
                q.integer("lines", 1);
                q.choice("output", &[("stats", 0), ("all", 1), ("train", 2)], 0);
                q.required("label");
            })
            .unwrap_err();
        insta::assert_json_snapshot!(refused.detail(), @r#"
        [
          {
            "type": "bool_parsing",
            "loc": [
              "query",
              "all"
            ],
            "msg": "Input should be a valid boolean, unable to interpret input",
            "input": "maybe"
          },
          {
            "type": "int_parsing",
            "loc": [
              "query",
              "lines"
            ],
            "msg": "Input should be a valid integer, unable to parse string as an integer",
            "input": "x"
          },
          {
            "type": "enum",
            "loc": [
              "query",
              "output"
            ],
            "msg": "Input should be 'stats', 'all' or 'train'",
            "input": "y",
            "ctx": {
              "expected": "'stats', 'all' or 'train'"
            }
          },
          {
            "type": "missing",
            "loc": [
              "query",
              "label"
            ],
            "msg": "Field required",
            "input": null
          }
        ]
        "#);
    }

    #[test]
    fn last_value_wins_and_plus_is_a_space() {
        let mut read = query("image=a&image=b+c%2Bd");
        assert_eq!(read.text("image").as_deref(), Some("b c+d"));
    }
}

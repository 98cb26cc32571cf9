//! From columns to values, and back.

use faena_domain::{FunctionId, Owner};
use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A column that holds JSON.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?).map(Self).map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

impl<T: Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        serde_json::to_string(&self.0)
            .map(ToSqlOutput::from)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    }
}

/// A column whose text is what serde makes of a unit variant or a newtype of text.
pub(crate) struct Text<T>(pub(crate) T);

impl<T: DeserializeOwned> FromSql for Text<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_value(serde_json::Value::String(value.as_str()?.to_owned()))
            .map(Self)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

impl<T: Serialize> ToSql for Text<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match serde_json::to_value(&self.0) {
            Ok(serde_json::Value::String(text)) => Ok(ToSqlOutput::from(text)),
            Ok(other) => Err(rusqlite::Error::ToSqlConversionFailure(format!("{other} is no text").into())),
            Err(error) => Err(rusqlite::Error::ToSqlConversionFailure(Box::new(error))),
        }
    }
}

/// A column with the hexadecimal digits of sealed bytes. Any other text is read as it is: it opens as no secret, and stops nothing else.
pub(crate) struct Hex(pub(crate) Vec<u8>);

impl FromSql for Hex {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = value.as_str()?;
        Ok(Self(hex::decode(text).unwrap_or_else(|_| text.as_bytes().to_vec())))
    }
}

/// A worker's run in two columns, the second behind the first; none where either is NULL.
pub(crate) fn owner(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Owner>> {
    let (worker, incarnation): (Option<String>, Option<String>) = (row.get(first)?, row.get(first + 1)?);
    Ok(worker.zip(incarnation).map(|(worker, incarnation)| Owner { worker, incarnation }))
}

/// A function as its columns name it: the namespace, and the name in lower case.
pub(crate) fn function_key(function: &FunctionId) -> (&str, String) {
    (function.namespace.as_str(), function.name.key())
}

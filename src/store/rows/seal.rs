//! Seals: a hash of every row, written in the transaction that writes the row.
//!
//! SQLite notices a damaged structure, but not a changed byte inside a text. A trigger on the
//! writing connection notes which rows a transaction touched; its commit hashes them. The audit log
//! has its own chain of hashes and is left out.
//!
//! The statements are made from the schema, so that a table of a later migration is sealed without
//! being named here.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::ops::{Deref, DerefMut};

use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection, Transaction};

use super::sql;
use crate::store::staging::hex;

/// Bytes of a hash that are kept: enough against accidents, and small for 100,000 rows.
const SEAL_BYTES: usize = 12;
/// Seals written by one statement.
const BATCH: usize = 2000;
/// Rows of the seals with this table name say for which schema the others were made.
const SCHEMA: &str = "";

/// A write transaction: takes the write lock when it begins, seals what it changed when it is
/// committed, rolls back when dropped.
#[derive(Debug)]
pub struct WriteTransaction(pub(super) Transaction<'static, Sqlite>);

impl WriteTransaction {
    /// Ends the transaction; everything is on the disk when this returns.
    ///
    /// # Errors
    /// When the disk does not take it; nothing was changed then.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        seal_changed(&mut self.0).await?;
        self.0.commit().await
    }
}

impl Deref for WriteTransaction {
    type Target = SqliteConnection;
    fn deref(&self) -> &SqliteConnection {
        &self.0
    }
}

impl DerefMut for WriteTransaction {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }
}

/// How the rows of one table are named and hashed.
struct Sealed {
    name: String,
    /// Columns of the primary key.
    keys: Vec<String>,
    columns: Vec<String>,
}

impl Sealed {
    async fn of(name: &str, connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let columns: Vec<(String, i64)> = sqlx::query_as(sql!("seal_columns"))
            .bind(name)
            .fetch_all(connection)
            .await?;
        let mut keys: Vec<_> = columns.iter().filter(|(_, pk)| *pk > 0).collect();
        keys.sort_by_key(|(_, pk)| *pk);
        let mut keys: Vec<String> = keys.into_iter().map(|(name, _)| quoted(name)).collect();
        if keys.is_empty() {
            keys.push("rowid".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            keys,
            columns: columns.iter().map(|(name, _)| quoted(name)).collect(),
        })
    }

    /// The key of a row as a JSON array.
    fn key(&self, row: &str) -> String {
        let parts: Vec<String> = self.keys.iter().map(|key| format!("{row}.{key}")).collect();
        format!("json_array({})", parts.join(", "))
    }

    /// The whole row as text that differs whenever a value or its type does.
    fn content(&self) -> String {
        let parts: Vec<String> = self
            .columns
            .iter()
            .map(|column| format!("quote(t.{column})"))
            .collect();
        parts.join(" || ',' || ")
    }

    /// Notes touched rows of this table, on one connection.
    fn triggers(&self) -> String {
        let (mut text, table) = (String::new(), quoted(&self.name));
        for (event, rows) in [
            ("INSERT", &["NEW"][..]),
            ("UPDATE", &["NEW", "OLD"]),
            ("DELETE", &["OLD"]),
        ] {
            let notes: String = rows
                .iter()
                .map(|row| {
                    format!(
                        "INSERT INTO unsealed VALUES ({}, {}); ",
                        literal(&self.name),
                        self.key(row)
                    )
                })
                .collect();
            // A String takes everything.
            let _ = writeln!(
                text,
                "CREATE TEMP TRIGGER {} AFTER {event} ON main.{table} BEGIN {notes}END;",
                quoted(&format!("seal_{event}_{}", self.name))
            );
        }
        text
    }

    fn select_changed(&self) -> String {
        let on: Vec<String> = (0..)
            .zip(&self.keys)
            .map(|(at, key)| format!("t.{key} = u.key ->> {at}"))
            .collect();
        format!(
            "SELECT u.key, {} FROM (SELECT DISTINCT key FROM temp.unsealed WHERE tbl = {}) AS u CROSS JOIN main.{} AS t ON {}",
            self.content(),
            literal(&self.name),
            quoted(&self.name),
            on.join(" AND ")
        )
    }

    fn select_all(&self) -> String {
        format!(
            "SELECT {}, {} FROM main.{} AS t",
            self.key("t"),
            self.content(),
            quoted(&self.name)
        )
    }
}

/// An SQL identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An SQL text.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn seal_of(content: &str) -> String {
    hex(&Sha256::digest(content)[..SEAL_BYTES])
}

async fn tables(connection: &mut SqliteConnection) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as(sql!("seal_tables"))
        .fetch_all(connection)
        .await
}

/// What all seals are made for: the key and the seal of a row of their own.
struct Schema {
    version: i64,
    seal: String,
}

impl Schema {
    /// Of the tables, their columns and the migrations that made them.
    async fn of(
        tables: &[(String, String)],
        connection: &mut SqliteConnection,
    ) -> Result<Self, sqlx::Error> {
        let (version, versions): (i64, Option<String>) = sqlx::query_as(sql!("seal_versions"))
            .fetch_one(connection)
            .await?;
        Ok(Self {
            version,
            seal: seal_of(&json!([tables, versions]).to_string()),
        })
    }

    /// Far from the keys of other versions, so that a changed byte does not make one of another.
    fn key(version: i64) -> String {
        seal_of(&format!("schema {version}"))
    }

    /// The seal that is stored for this schema.
    async fn stored(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar(sql!("seal_get"))
            .bind(SCHEMA)
            .bind(Self::key(self.version))
            .fetch_optional(connection)
            .await
    }
}

/// Makes a connection note which rows it touches.
pub(super) async fn watch(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut script = "CREATE TEMP TABLE unsealed (tbl TEXT, key TEXT);\n".to_owned();
    for (name, _) in tables(connection).await? {
        script += &Sealed::of(&name, connection).await?.triggers();
    }
    sqlx::raw_sql(AssertSqlSafe(script))
        .execute(connection)
        .await?;
    Ok(())
}

/// Seals every row, unless the seals there are were made for the same tables and columns: a
/// migration that adds a column changes what a row is.
pub(super) async fn seal_all_once(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let tables = tables(connection).await?;
    let schema = Schema::of(&tables, connection).await?;
    if schema.stored(connection).await?.as_ref() == Some(&schema.seal) {
        return Ok(());
    }
    let mut tx = sqlx::Connection::begin_with(connection, "BEGIN IMMEDIATE").await?;
    sqlx::query(sql!("seals_clear")).execute(&mut *tx).await?;
    for (name, _) in &tables {
        let select = Sealed::of(name, &mut tx).await?.select_all();
        put_seals(&mut tx, name, &select).await?;
    }
    let row = json!([[SCHEMA, Schema::key(schema.version), schema.seal]]).to_string();
    sqlx::query(sql!("seal_put"))
        .bind(row)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

async fn put_seals(
    connection: &mut SqliteConnection,
    name: &str,
    select: &str,
) -> Result<(), sqlx::Error> {
    let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(select))
        .fetch_all(&mut *connection)
        .await?;
    for batch in rows.chunks(BATCH) {
        let seals: Vec<_> = batch
            .iter()
            .map(|(key, content)| json!([name, key, seal_of(content)]))
            .collect();
        sqlx::query(sql!("seal_put"))
            .bind(json!(seals).to_string())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn seal_changed(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let touched: Vec<String> = sqlx::query_scalar(sql!("seal_unsealed"))
        .fetch_all(&mut *connection)
        .await?;
    if touched.is_empty() {
        return Ok(());
    }
    sqlx::query(sql!("seal_drop"))
        .execute(&mut *connection)
        .await?;
    for name in touched {
        let select = Sealed::of(&name, connection).await?.select_changed();
        put_seals(connection, &name, &select).await?;
    }
    sqlx::query(sql!("seal_done")).execute(connection).await?;
    Ok(())
}

/// A row that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenSeal {
    /// Table.
    pub table: String,
    /// Primary key, a JSON array.
    pub key: String,
    /// What happened to it.
    pub what: &'static str,
}

/// Whether the program was stopped between bringing the schema up to date and sealing the rows.
async fn never_sealed(
    version: i64,
    connection: &mut SqliteConnection,
) -> Result<bool, sqlx::Error> {
    let schemas: Vec<(String, String)> = sqlx::query_as(sql!("seals_of"))
        .bind(SCHEMA)
        .fetch_all(connection)
        .await?;
    Ok(schemas
        .iter()
        .all(|(key, _)| (1..version).any(|earlier| *key == Schema::key(earlier))))
}

/// Rows that are not as they were written. Rows of a database that was never sealed are not looked at.
pub(super) async fn broken(
    connection: &mut SqliteConnection,
) -> Result<Vec<BrokenSeal>, sqlx::Error> {
    let mut broken = Vec::new();
    // One state of the database, while others write to it.
    let mut tx = sqlx::Connection::begin(connection).await?;
    let connection: &mut SqliteConnection = &mut tx;
    let tables = tables(connection).await?;
    let schema = Schema::of(&tables, connection).await?;
    match schema.stored(connection).await? {
        Some(seal) if seal == schema.seal => {}
        None if never_sealed(schema.version, connection).await? => return Ok(broken),
        _ => broken.push(BrokenSeal {
            table: "row_seals".to_owned(),
            key: json!([SCHEMA]).to_string(),
            what: "does not fit the tables: it or their definition was changed",
        }),
    }
    for (name, _) in tables {
        let select = Sealed::of(&name, connection).await?.select_all();
        let mut seals: HashMap<String, String> = sqlx::query_as(sql!("seals_of"))
            .bind(&name)
            .fetch_all(&mut *connection)
            .await?
            .into_iter()
            .collect();
        let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(select))
            .fetch_all(&mut *connection)
            .await?;
        let mut seen = HashSet::new();
        let mut add = |key: String, what| {
            broken.push(BrokenSeal {
                table: name.clone(),
                key,
                what,
            });
        };
        for (key, content) in rows {
            match seals.remove(&key) {
                Some(seal) if seal == seal_of(&content) => {}
                Some(_) => add(key.clone(), "was changed outside of this program"),
                None if seen.contains(&key) => add(key.clone(), "is there twice"),
                None => add(key.clone(), "was added outside of this program"),
            }
            seen.insert(key);
        }
        let mut gone: Vec<String> = seals.into_keys().collect();
        gone.sort();
        for key in gone {
            add(key, "is gone");
        }
    }
    Ok(broken)
}

//! The database file: what every connection promises, a full disk, a later release.

use sqlx::Connection;
use sqlx::migrate::Migrator;

use super::*;

async fn database() -> (tempfile::TempDir, Database) {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&dir.path().join("db")).await.unwrap();
    (dir, database)
}

#[tokio::test]
async fn every_connection_syncs_and_checks_references() {
    let (_dir, database) = database().await;
    for pool in [&database.writer, &database.readers] {
        for (pragma, expected) in [
            ("PRAGMA synchronous", "2"),
            ("PRAGMA foreign_keys", "1"),
            ("PRAGMA busy_timeout", "10000"),
        ] {
            let value: i64 = sqlx::query_scalar(pragma).fetch_one(pool).await.unwrap();
            assert_eq!(value.to_string(), expected, "{pragma}");
        }
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
            .fetch_one(pool)
            .await
            .unwrap();
        assert_eq!(mode, "wal");
    }
}

#[tokio::test]
async fn a_full_database_refuses_the_write_and_keeps_the_rest() {
    let (_dir, database) = database().await;
    let put = async |key: &str, value: &str| {
        let mut tx = database.begin().await?;
        put_setting(&mut tx, key, value).await?;
        Ok::<_, StoreError>(tx.commit().await?)
    };
    put("old", "value").await.unwrap();
    for _ in 0..3 {
        sqlx::query("PRAGMA max_page_count = 1")
            .execute(&database.writer)
            .await
            .unwrap();
        assert!(matches!(
            put("new", &"x".repeat(1 << 20)).await,
            Err(StoreError::NoSpace(_))
        ));
        assert_eq!(
            database.setting("old").await.unwrap().as_deref(),
            Some("value")
        );
        assert_eq!(database.setting("new").await.unwrap(), None);
    }
    // There is space again, on the same connection or on the one that replaced it.
    sqlx::query("PRAGMA max_page_count = 1000000")
        .execute(&database.writer)
        .await
        .unwrap();
    put("new", &"x".repeat(1 << 20)).await.unwrap();
}

#[tokio::test]
async fn data_of_a_later_release_are_left_alone() {
    let (dir, database) = database().await;
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (9999, 'later', 0, 1, x'00', 0)")
        .execute(&database.writer)
        .await
        .unwrap();
    database.close().await;
    let again = Database::open(&dir.path().join("db")).await;
    assert!(matches!(again, Err(StoreError::Newer(_))), "{again:?}");
}

#[tokio::test]
async fn versions_of_a_release_without_rounds_have_a_way_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    let earlier = schema::MIGRATIONS
        .iter()
        .filter(|migration| migration.version <= 3)
        .cloned()
        .collect();
    let earlier = Migrator::with_migrations(earlier);
    earlier.run(&mut connection).await.unwrap();
    for version in [1, 2, 4] {
        sqlx::query(
            "INSERT INTO models (name, version, sha256, weights_sha256, created_ms, metrics, lineage)
             VALUES ('ct', ?, '', '', 7, 'null', '{}')",
        )
        .bind(version)
        .execute(&mut connection)
        .await
        .unwrap();
    }
    sqlx::query("INSERT INTO live_models VALUES ('ct', 4)")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();

    let database = Database::open(&path).await.unwrap();
    let models = database.models().await.unwrap();
    let found: Vec<_> = models
        .iter()
        .map(|row| (row.version, row.state.as_str(), row.live, row.pinned))
        .collect();
    let published = |version, live| (version, "published", live, false);
    assert_eq!(
        found,
        [published(1, false), published(2, false), published(4, true)]
    );
    assert_eq!(database.replaced_by("ct", 4).await.unwrap(), Some(2));
    assert_eq!(database.replaced_by("ct", 1).await.unwrap(), None);
    assert!(database.broken_seals().await.unwrap().is_empty());
}

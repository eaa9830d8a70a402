//! The `settings` table.
use rusqlite::{params, OptionalExtension};

use super::SqliteStore;
use crate::store::{SettingStore, StoreFuture};

impl SettingStore for SqliteStore {
    fn setting(&self, name: &str) -> StoreFuture<Option<Vec<u8>>> {
        let name = name.to_owned();
        self.read("read a setting", move |connection| {
            let mut statement = connection.prepare_cached("SELECT value FROM settings WHERE name = ?1")?;
            Ok(statement.query_row([name], |row| row.get(0)).optional()?)
        })
    }

    fn set_setting(&self, name: &str, value: Vec<u8>) -> StoreFuture<()> {
        let name = name.to_owned();
        self.write("write a setting", name.len() + value.len(), move |connection| {
            let mut statement = connection.prepare_cached(
                "INSERT INTO settings (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )?;
            statement.execute(params![name, value])?;
            Ok(())
        })
    }
}

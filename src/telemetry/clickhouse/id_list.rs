//! Many ids in one query, as several parameters: a ClickHouse server refuses a form field above 128 KiB
//! (`http_max_field_value_size`), which some thousand ids pass.
use clickhouse::query::Query;

/// Bytes of one parameter, at most: below ClickHouse's 131,072 with room for a longest id.
const MAX_PARAMETER_BYTES: usize = 100_000;

/// Quotes and comma around an id, whose characters need no escape (see [`crate::ids`]).
const FRAME_BYTES: usize = 3;

/// Ids as `column IN …` takes them, bound as `ids0`, `ids1` and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdList<'a> {
    parts: Vec<Vec<&'a str>>,
}

impl<'a> IdList<'a> {
    pub fn new(ids: impl IntoIterator<Item = &'a str>) -> Self {
        // An empty list is one empty parameter: nothing is in it.
        let (mut parts, mut bytes) = (vec![Vec::new()], 0);
        for id in ids {
            bytes += id.len() + FRAME_BYTES;
            if bytes > MAX_PARAMETER_BYTES {
                parts.push(Vec::new());
                bytes = id.len() + FRAME_BYTES;
            }
            if let Some(part) = parts.last_mut() {
                part.push(id);
            }
        }
        Self { parts }
    }

    /// Whether `column`, a constant of this crate, is one of the ids: in parentheses, to stand beside other conditions.
    pub fn condition(&self, column: &str) -> String {
        let part = |number| format!("{column} IN {{ids{number}:Array(String)}}");
        format!("({})", (0..self.parts.len()).map(part).collect::<Vec<_>>().join(" OR "))
    }

    /// Binds what [`Self::condition`] names.
    pub fn bind(&self, query: Query) -> Query {
        let numbered = self.parts.iter().enumerate();
        numbered.fold(query, |query, (number, part)| query.param(&format!("ids{number}"), part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_in_one_parameter_and_no_parameter_is_longer_than_clickhouse_takes() {
        for (count, length) in [(0, 0), (1, 128), (763, 128), (764, 128), (10_000, 128), (100_000, 1), (20_000, 7)] {
            let ids: Vec<String> = (0..count).map(|n| format!("{n:0>length$}")).collect();
            let list = IdList::new(ids.iter().map(String::as_str));
            assert_eq!(list.parts.concat(), ids, "{count} of {length}");
            for part in &list.parts {
                let bytes: usize = part.iter().map(|id| id.len() + FRAME_BYTES).sum();
                assert!(bytes <= MAX_PARAMETER_BYTES, "{count} of {length}: {bytes}");
            }
            assert_eq!(list.condition("device_id").matches(" IN ").count(), list.parts.len());
        }
        assert_eq!(IdList::new(["a"]).condition("id"), "(id IN {ids0:Array(String)})");
    }
}

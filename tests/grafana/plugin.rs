//! What becomes of a query before ClickHouse sees it: Grafana puts values in for variables, the plugin expands its macros.
//!
//! From the sources of grafana/clickhouse-datasource 4.20.0 (`pkg/macros/macros.go`; `applyConditionalAll` in
//! `src/data/CHDatasource.ts`, which comes before the variables) and of grafana/scenes (`formatRegistry.ts`). What is not
//! known here is an error, so that a dashboard cannot use what nobody has looked up.
use std::collections::BTreeMap;

/// The time range and the interval that Grafana chose for a panel.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// Milliseconds since 1970.
    pub from: i64,
    pub to: i64,
    pub interval_seconds: i64,
}

/// Values of variables; `$__all` is what Grafana has for All.
#[derive(Clone, Debug, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    fn get(&self, name: &str) -> Result<&str, String> {
        self.0.get(name).map(String::as_str).ok_or_else(|| format!("there is no variable {name}"))
    }
}

/// The query as ClickHouse gets it.
pub fn expand(sql: &str, range: &Range, variables: &Variables) -> Result<String, String> {
    macros(&values(&conditional_all(sql, variables)?, variables)?, range)
}

/// `applyConditionalAll`: from the last one to the first, the condition or, for All, `1=1`.
fn conditional_all(sql: &str, variables: &Variables) -> Result<String, String> {
    const MACRO: &str = "$__conditionalAll";
    let mut sql = sql.to_owned();
    while let Some(at) = sql.rfind(MACRO) {
        let (arguments, end) = arguments(&sql, at + MACRO.len())?;
        let [condition, variable] = arguments.as_slice() else {
            return Err(format!("{MACRO} with {} arguments", arguments.len()));
        };
        let name = variable.trim().strip_prefix('$').ok_or_else(|| format!("{variable:?} is no plain variable"))?;
        let value = variables.get(name)?;
        let phrase = if value.is_empty() || value == "$__all" { "1=1" } else { condition.as_str() };
        // It is JavaScript's String.replace, in whose replacement these mean something else.
        if let Some(special) = ["$$", "$&", "$`", "$'", "$<"].iter().find(|one| phrase.contains(**one)) {
            return Err(format!("{special} in {phrase}"));
        }
        let phrase = phrase.to_owned();
        sql.replace_range(at..end, &phrase);
    }
    Ok(sql)
}

/// `${name:percentencode}`: `encodeURIComponentStrict`, which leaves letters, digits and `- _ . ~`. It is the one format
/// that is allowed here, because the others leave something in that can end a string of ClickHouse: `singlequote` and
/// `sqlstring` do not escape a backslash.
fn values(sql: &str, variables: &Variables) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once("${") {
        let (reference, tail) = after.split_once('}').ok_or("a variable without its end")?;
        let name =
            reference.strip_suffix(":percentencode").ok_or_else(|| format!("${{{reference}}} is not encoded"))?;
        if !(before.ends_with("decodeURLComponent('") && tail.starts_with("')")) {
            return Err(format!("${{{reference}}} is not decoded"));
        }
        expanded.push_str(before);
        for byte in variables.get(name)?.bytes() {
            match byte {
                b'-' | b'_' | b'.' | b'~' => expanded.push(char::from(byte)),
                _ if byte.is_ascii_alphanumeric() => expanded.push(char::from(byte)),
                _ => expanded.push_str(&format!("%{byte:02X}")),
            }
        }
        rest = tail;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The macros of `ClickHouseMacros` that the dashboards use. One inside of another's arguments is refused: the order in
/// which the plugin's parser would expand them is not this file's to guess.
fn macros(sql: &str, range: &Range) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = sql;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let name: String = rest[at + 1..].chars().take_while(|one| one.is_alphanumeric() || *one == '_').collect();
        let mut end = at + 1 + name.len();
        // timeToDateTime and timeToDateTime64
        let seconds = |ms: i64| format!("toDateTime({})", ms.div_euclid(1000));
        let millis = |ms: i64| format!("fromUnixTimestamp64Milli({ms})");
        let step = range.interval_seconds.max(1);
        let text = match name.as_str() {
            "__fromTime" => seconds(range.from),
            "__toTime" => seconds(range.to),
            // IntervalSeconds
            "__interval_s" => step.to_string(),
            "__timeFilter" | "__timeFilter_ms" | "__timeInterval" => {
                let (arguments, after) = arguments(rest, end)?;
                let [column] = arguments.as_slice() else { return Err(format!("${name} takes one argument")) };
                if column.contains('$') {
                    return Err(format!("${name} has {column} in it"));
                }
                end = after;
                match name.as_str() {
                    "__timeInterval" => format!("toStartOfInterval(toDateTime({column}), INTERVAL {step} second)"),
                    "__timeFilter" => {
                        format!("{column} >= {} AND {column} <= {}", seconds(range.from), seconds(range.to))
                    }
                    _ => format!("{column} >= {} AND {column} <= {}", millis(range.from), millis(range.to)),
                }
            }
            _ => return Err(format!("${name} is not known")),
        };
        expanded.push_str(&text);
        rest = &rest[end..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The arguments in the parentheses that open at `at`, and where these end: `getMacroArgs`, which knows no quotes, so
/// that neither parentheses nor commas in strings may be among the arguments.
fn arguments(sql: &str, at: usize) -> Result<(Vec<String>, usize), String> {
    if !sql[at..].starts_with('(') {
        return Err(format!("no arguments at {:.40}", &sql[at..]));
    }
    let (mut depth, mut start, mut found) = (0_usize, at + 1, Vec::new());
    for (place, one) in sql[at..].char_indices().map(|(place, one)| (at + place, one)) {
        match one {
            '(' => depth += 1,
            ',' if depth == 1 => {
                found.push(sql[start..place].to_owned());
                start = place + 1;
            }
            ')' => {
                depth -= 1;
                if depth == 0 {
                    found.push(sql[start..place].to_owned());
                    return Ok((found, place + 1));
                }
            }
            _ => {}
        }
    }
    Err("parentheses that do not close".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> Variables {
        let mut variables = Variables::default();
        variables.set(name, value);
        variables
    }

    const RANGE: Range = Range { from: 1_708_430_068_123, to: 1_708_433_668_456, interval_seconds: 20 };

    fn expanded(sql: &str) -> Result<String, String> {
        expand(sql, &RANGE, &with("id", "it's"))
    }

    /// The examples of the plugin's own documentation (`src/ch-parser/pluginMacros.ts`), with this range.
    #[test]
    fn macros_become_what_the_plugin_documents() {
        for (sql, expected) in [
            ("$__timeFilter(time)", "time >= toDateTime(1708430068) AND time <= toDateTime(1708433668)"),
            (
                "$__timeFilter_ms(time)",
                "time >= fromUnixTimestamp64Milli(1708430068123) AND time <= fromUnixTimestamp64Milli(1708433668456)",
            ),
            ("$__fromTime, $__toTime", "toDateTime(1708430068), toDateTime(1708433668)"),
            ("$__timeInterval(h.t)", "toStartOfInterval(toDateTime(h.t), INTERVAL 20 second)"),
            ("1 / $__interval_s", "1 / 20"),
        ] {
            assert_eq!(expanded(sql).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn all_is_no_condition() {
        let sql = "$__conditionalAll(v = decodeURLComponent('${v:percentencode}'), $v)";
        assert_eq!(expand(sql, &RANGE, &with("v", "$__all")).as_deref(), Ok("1=1"));
        assert_eq!(expand(sql, &RANGE, &with("v", "a\\'")).as_deref(), Ok("v = decodeURLComponent('a%5C%27')"));
    }

    #[test]
    fn what_is_not_known_or_not_encoded_is_refused() {
        for sql in [
            "$__timeFilterr(t)",
            "$__timeGroup(t, 1m)",
            "$__timeInterval($__fromTime)",
            "$id",
            "${id}",
            "'${id:percentencode}'",
            "decodeURLComponent('${id:singlequote}')",
            "decodeURLComponent('${other:percentencode}')",
            "$__conditionalAll(1, $other)",
        ] {
            assert!(expanded(sql).is_err(), "{sql}");
        }
        assert!(expanded("decodeURLComponent('${id:percentencode}')").is_ok());
    }
}

//! How long a column is in ClickHouse's Native format: enough of its types to find where the next column begins.
//!
//! Sources: the serializations in ClickHouse's `src/DataTypes/Serializations`. All numbers are little-endian.
use super::native_revision::Cursor;

/// Types within types that are followed; deeper ones are none that anybody stores.
const MAX_DEPTH: usize = 32;

/// A LowCardinality column's flags (`SerializationLowCardinality.cpp`): the width of its indexes, and whether its own
/// dictionary follows.
const INDEX_TYPE_MASK: u64 = 0xff;
const HAS_ADDITIONAL_KEYS: u64 = 1 << 9;

/// The layout of a type's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// So many bytes each.
    Fixed(usize),
    Text,
    Nullable(Box<Shape>),
    Array(Box<Shape>),
    Tuple(Vec<Shape>),
    LowCardinality(Box<Shape>),
}

impl Shape {
    /// The shape of the type of this name; `None` for one that is not known, such as `JSON` or an aggregate's state.
    pub fn of(type_name: &str) -> Option<Self> {
        Self::within(type_name.trim(), MAX_DEPTH)
    }

    fn within(type_name: &str, depth: usize) -> Option<Self> {
        let depth = depth.checked_sub(1)?;
        let (name, arguments) = match type_name.split_once('(') {
            Some((name, rest)) => (name, split(rest.strip_suffix(')')?)),
            None => (type_name, Vec::new()),
        };
        let argument = |place: usize| Self::within(arguments.get(place)?, depth);
        let point = || Self::Tuple(vec![Self::Fixed(8), Self::Fixed(8)]);
        let array = |of: Self| Self::Array(Box::new(of));
        Some(match name {
            "UInt8" | "Int8" | "Bool" | "Enum8" | "Nothing" => Self::Fixed(1),
            "UInt16" | "Int16" | "Date" | "Enum16" | "BFloat16" => Self::Fixed(2),
            "UInt32" | "Int32" | "Float32" | "DateTime" | "Date32" | "IPv4" | "Time" => Self::Fixed(4),
            "UInt64" | "Int64" | "Float64" | "DateTime64" | "Time64" => Self::Fixed(8),
            "UInt128" | "Int128" | "UUID" | "IPv6" => Self::Fixed(16),
            "UInt256" | "Int256" => Self::Fixed(32),
            "Decimal" => Self::Fixed(match arguments.first()?.parse::<u32>().ok()? {
                0..=9 => 4,
                10..=18 => 8,
                19..=38 => 16,
                _ => 32,
            }),
            "FixedString" => Self::Fixed(arguments.first()?.parse().ok()?),
            "String" => Self::Text,
            "Nullable" => Self::Nullable(Box::new(argument(0)?)),
            "LowCardinality" => Self::LowCardinality(Box::new(argument(0)?)),
            "Array" => array(argument(0)?),
            "Map" => array(Self::Tuple(vec![argument(0)?, argument(1)?])),
            "Tuple" | "Nested" => {
                let elements = arguments.iter().map(|element| Self::within(without_name(element), depth));
                let tuple = Self::Tuple(elements.collect::<Option<_>>()?);
                if name == "Nested" {
                    array(tuple)
                } else {
                    tuple
                }
            }
            "SimpleAggregateFunction" => Self::within(arguments.last()?, depth)?,
            "Point" => point(),
            "Ring" | "LineString" => array(point()),
            "Polygon" | "MultiLineString" => array(array(point())),
            "MultiPolygon" => array(array(array(point()))),
            interval if interval.starts_with("Interval") => Self::Fixed(8),
            _ => return None,
        })
    }

    /// Moves past `rows` values; `None` when the bytes end before they do.
    pub fn skip(&self, cursor: &mut Cursor<'_>, rows: usize) -> Option<()> {
        // What precedes a whole column comes before all of its values, also for types within types.
        self.skip_prefix(cursor)?;
        self.skip_values(cursor, rows)
    }

    fn skip_prefix(&self, cursor: &mut Cursor<'_>) -> Option<()> {
        match self {
            Self::Fixed(_) | Self::Text => Some(()),
            Self::Nullable(inner) | Self::Array(inner) => inner.skip_prefix(cursor),
            Self::Tuple(elements) => elements.iter().try_for_each(|element| element.skip_prefix(cursor)),
            // The version of its keys.
            Self::LowCardinality(_) => cursor.skip(8),
        }
    }

    fn skip_values(&self, cursor: &mut Cursor<'_>, rows: usize) -> Option<()> {
        match self {
            Self::Fixed(width) => cursor.skip(rows.checked_mul(*width)?),
            Self::Text => (0..rows).try_for_each(|_| cursor.text().map(drop)),
            Self::Nullable(inner) => {
                cursor.skip(rows)?;
                inner.skip_values(cursor, rows)
            }
            Self::Array(inner) => {
                // Offsets: the last one is how many values all rows have together.
                let Some(before_last) = rows.checked_sub(1) else { return inner.skip_values(cursor, 0) };
                cursor.skip(before_last.checked_mul(8)?)?;
                let values = usize::try_from(cursor.u64()?).ok()?;
                inner.skip_values(cursor, values)
            }
            // A tuple of nothing still has one byte a row.
            Self::Tuple(elements) if elements.is_empty() => cursor.skip(rows),
            Self::Tuple(elements) => elements.iter().try_for_each(|element| element.skip_values(cursor, rows)),
            Self::LowCardinality(inner) => skip_low_cardinality(inner, cursor, rows),
        }
    }
}

fn skip_low_cardinality(inner: &Shape, cursor: &mut Cursor<'_>, rows: usize) -> Option<()> {
    let keys = match inner {
        // NULL is the first key, so keys need no mask.
        Shape::Nullable(of) => of,
        other => other,
    };
    let mut left = rows;
    while left > 0 {
        let flags = cursor.u64()?;
        if flags & HAS_ADDITIONAL_KEYS != 0 {
            let count = usize::try_from(cursor.u64()?).ok()?;
            keys.skip_values(cursor, count)?;
        }
        let count = usize::try_from(cursor.u64()?).ok()?;
        let width = 1_usize.checked_shl(u32::try_from(flags & INDEX_TYPE_MASK).ok()?)?;
        cursor.skip(count.checked_mul(width)?)?;
        // A group without rows would never end.
        left = left.checked_sub(count.max(1))?;
    }
    Some(())
}

/// The arguments of a type, at the commas outside of parentheses and quotes.
fn split(arguments: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    scan(arguments, |at, byte| {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(arguments[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
        true
    });
    let last = arguments[start..].trim();
    if !last.is_empty() || !parts.is_empty() {
        parts.push(last);
    }
    parts
}

/// The type of a tuple's element, whose name may come before it.
fn without_name(element: &str) -> &str {
    let mut depth = 0_usize;
    let mut found = None;
    scan(element, |at, byte| {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b' ' if depth == 0 => found = Some(at),
            _ => {}
        }
        found.is_none()
    });
    found.map_or(element, |at| element[at..].trim_start())
}

/// Calls `visit` for every byte outside of quotes, until it says that this is enough.
fn scan(text: &str, mut visit: impl FnMut(usize, u8) -> bool) {
    let mut quote = None;
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match quote {
            Some(_) if is_escaped => is_escaped = false,
            Some(_) if byte == b'\\' => is_escaped = true,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if matches!(byte, b'\'' | b'`' | b'"') => quote = Some(byte),
            None => {
                if !visit(at, byte) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_quotes_and_commas_inside_of_types_split_nothing() {
        let text = || Box::new(Shape::Text);
        for (name, shape) in [
            ("DateTime64(3, 'UTC')", Shape::Fixed(8)),
            ("Enum8('a, (b' = 1, 'it\\'s)' = 2)", Shape::Fixed(1)),
            ("Decimal(38, 2)", Shape::Fixed(16)),
            ("FixedString(7)", Shape::Fixed(7)),
            ("LowCardinality(Nullable(String))", Shape::LowCardinality(Box::new(Shape::Nullable(text())))),
            ("Map(LowCardinality(String), Float64)", {
                let key = Shape::LowCardinality(text());
                Shape::Array(Box::new(Shape::Tuple(vec![key, Shape::Fixed(8)])))
            }),
            (
                "Tuple(a UInt8, `b c` Array(String), Date)",
                Shape::Tuple(vec![Shape::Fixed(1), Shape::Array(text()), Shape::Fixed(2)]),
            ),
            ("SimpleAggregateFunction(max, UInt64)", Shape::Fixed(8)),
            ("Tuple()", Shape::Tuple(Vec::new())),
        ] {
            assert_eq!(Shape::of(name), Some(shape), "{name}");
        }
    }

    #[test]
    fn a_type_that_is_not_known_has_no_shape() {
        for name in ["JSON", "Variant(String, UInt8)", "AggregateFunction(sum, UInt8)", "Array(Dynamic)", "Array(", ""]
        {
            assert_eq!(Shape::of(name), None, "{name}");
        }
        let deep = format!("{}UInt8{}", "Array(".repeat(10_000), ")".repeat(10_000));
        assert_eq!(Shape::of(&deep), None, "nor does one that is too deep");
    }

    proptest::proptest! {
        #[test]
        fn no_type_name_and_no_bytes_make_it_panic(name: String, bytes: Vec<u8>, rows in 0_usize..9) {
            let known = ["LowCardinality(String)", "Array(LowCardinality(String))", "Tuple(Array(Nullable(String)), Date)"];
            for name in known.iter().copied().chain([name.as_str()]) {
                if let Some(shape) = Shape::of(name) {
                    let _ = shape.skip(&mut Cursor::new(&bytes), rows);
                }
            }
        }
    }
}

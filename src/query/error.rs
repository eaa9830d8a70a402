//! What is wrong with a query, and where.

/// A filter or an order that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct QueryError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What was found and what was expected.
    pub message: String,
}

/// Bytes of the user's text that an error repeats.
const MAX_ECHO_BYTES: usize = 40;

/// A user's text as an error shows it: quoted, control characters escaped, and no longer than a few words.
pub(super) fn shown(text: &str) -> String {
    if text.len() <= MAX_ECHO_BYTES {
        return format!("{text:?}");
    }
    let end = (0..=MAX_ECHO_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{:?}...", &text[..end])
}

/// `; did you mean X?` for the candidate nearest to `found`, or nothing when none is near. It ends a sentence: what an
/// error says besides comes before it.
pub(crate) fn suggestion<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    // Also bounds the work: the distance of two texts costs their lengths' product.
    const MAX_BYTES: usize = 64;
    /// Of two unrelated names the similarity is below this; of a typing error it is above.
    const NEAR: f64 = 0.6;
    if found.len() > MAX_BYTES {
        return String::new();
    }
    candidates
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(found, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| format!("; did you mean {candidate}?"))
        .unwrap_or_default()
}

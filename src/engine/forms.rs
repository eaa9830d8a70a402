//! Names and values in a request: the URL's query string, and `multipart/form-data` bodies, in which clients send
//! a query with its parameters (the `clickhouse` crate does since 0.15.3).
use super::exception::{code, Exception};

/// Most form fields that are read; a query has its text and its parameters, some dozens at the most.
const MAX_FIELDS: usize = 1_000;

/// Decodes `a=1&b=%20`. Bytes that are no UTF-8 become replacement characters.
pub fn query_string(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .take(MAX_FIELDS)
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| (*byte as char).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'+' => decoded.push(b' '),
            b'%' => match (hex(bytes.get(at)), hex(bytes.get(at + 1))) {
                (Some(high), Some(low)) => {
                    decoded.push((high * 16 + low) as u8);
                    at += 2;
                }
                _ => decoded.push(byte),
            },
            _ => decoded.push(byte),
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The boundary of a multipart form, if the content type says that the body is one.
pub fn multipart_boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        (name.trim().eq_ignore_ascii_case("boundary") && !value.is_empty()).then(|| value.to_owned())
    })
}

/// Reads a whole multipart body (RFC 7578). A part with a file name is an external table, which is not supported.
///
/// # Errors
/// `CANNOT_PARSE_TEXT` for a body that is no such form, `NOT_IMPLEMENTED` for an external table.
pub fn multipart(body: &[u8], boundary: &str) -> Result<Vec<(String, String)>, Exception> {
    let malformed =
        |what: &str| Exception::new(code::CANNOT_PARSE_TEXT, "CANNOT_PARSE_TEXT", format!("The multipart form {what}"));
    let delimiter = format!("--{boundary}");
    let mut fields = Vec::new();
    let mut rest = match find(body, delimiter.as_bytes()) {
        Some(at) => &body[at + delimiter.len()..],
        None => return Err(malformed("does not hold its boundary")),
    };
    let separator = format!("\r\n{delimiter}");
    loop {
        if rest.starts_with(b"--") {
            return Ok(fields);
        }
        let head_end = find(rest, b"\r\n\r\n").ok_or_else(|| malformed("has a part without a head"))?;
        let body_start = head_end + 4;
        let length = find(&rest[body_start..], separator.as_bytes())
            .ok_or_else(|| malformed("ends within a part; the request was cut"))?;
        let head = String::from_utf8_lossy(&rest[..head_end]);
        let name = disposition(&head, "name").ok_or_else(|| malformed("has a part without a name"))?;
        if disposition(&head, "filename").is_some() {
            return Err(Exception::new(
                code::NOT_IMPLEMENTED,
                "NOT_IMPLEMENTED",
                format!("External tables are not supported by the embedded engine (part {name})"),
            ));
        }
        if fields.len() == MAX_FIELDS {
            return Err(malformed(&format!("has more than {MAX_FIELDS} parts")));
        }
        let value = String::from_utf8_lossy(&rest[body_start..body_start + length]).into_owned();
        fields.push((name, value));
        rest = &rest[body_start + length + separator.len()..];
    }
}

/// `name="value"` of the part's Content-Disposition.
fn disposition(head: &str, wanted: &str) -> Option<String> {
    let line = head.lines().find(|line| {
        line.get(.."content-disposition:".len()).is_some_and(|start| start.eq_ignore_ascii_case("content-disposition:"))
    })?;
    line.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_and_plus_are_decoded() {
        let pairs = query_string("query=SELECT%20%27%C3%BC%27+1&a&=x&b=%zz%4");
        let expected = [("query", "SELECT 'ü' 1"), ("a", ""), ("", "x"), ("b", "%zz%4")];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_form_of_the_clickhouse_crate_is_read() {
        let body = b"--xyz\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT {a:String}\r\n\
            --xyz\r\nContent-Disposition: form-data; name=\"param_a\"\r\n\r\nline\r\n--xy\r\n--xyz--\r\n";
        let boundary = multipart_boundary("multipart/form-data; boundary=\"xyz\"").expect("a boundary");
        let fields = multipart(body, &boundary).expect("a form");
        assert_eq!(fields[0], ("query".to_owned(), "SELECT {a:String}".to_owned()));
        assert_eq!(fields[1], ("param_a".to_owned(), "line\r\n--xy".to_owned()));
    }

    #[test]
    fn a_form_that_was_cut_is_refused() {
        let body = b"--b\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nDROP TABLE t";
        assert_eq!(multipart(body, "b").expect_err("cut").code(), code::CANNOT_PARSE_TEXT);
    }

    #[test]
    fn an_external_table_is_refused_by_name() {
        let body = b"--b\r\nContent-Disposition: form-data; name=\"ext\"; filename=\"f\"\r\n\r\n1\r\n--b--";
        assert_eq!(multipart(body, "b").expect_err("a file").code(), code::NOT_IMPLEMENTED);
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_the_reader_panic(body: Vec<u8>, text: String) {
            let _ = multipart(&body, "b");
            let _ = (query_string(&text), multipart_boundary(&text));
        }
    }
}

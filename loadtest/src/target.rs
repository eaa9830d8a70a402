//! Where the server is: an `http://host:port` URL, checked once, and turned into what the transport needs.
use std::net::{SocketAddr, ToSocketAddrs};

use crate::error::LoadError;

/// The address of a server, without TLS: the generator measures the server, and runs beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    authority: String,
}

impl Target {
    /// Accepts `http://host[:port][/]`; the port defaults to 80.
    pub fn parse(url: &str) -> Result<Self, LoadError> {
        let refuse = |why: &'static str| LoadError::Url { url: url.to_owned(), why };
        let uri: http::Uri = url.parse().map_err(|_| refuse("it is no URL; write it as http://127.0.0.1:8080"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(refuse("TLS is not spoken by the load generator; use the server's plain port"))
            }
            _ => return Err(refuse("it must begin with http://")),
        }
        let authority = uri.authority().ok_or_else(|| refuse("it names no host"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(refuse("write only a host and a port, as in http://127.0.0.1:8080"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(refuse("it has a path; the services live at the root, so give http://host:port alone"));
        }
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self { authority: format!("{}:{port}", authority.host()) })
    }

    /// `host:port`, as the `Host` header and HTTP/2's `:authority` carry it.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The first address that the name resolves to. Blocks on DNS for names that are no literal address.
    pub(crate) fn resolve(&self) -> std::io::Result<SocketAddr> {
        let mut addresses = self.authority.to_socket_addrs()?;
        addresses.next().ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_port_are_taken_and_all_else_is_refused_with_a_reason() {
        let authority = |url: &str| Target::parse(url).expect(url).authority().to_owned();
        assert_eq!(authority("http://127.0.0.1:8080"), "127.0.0.1:8080");
        assert_eq!(authority("http://[::1]:9/"), "[::1]:9");
        assert_eq!(authority("http://fleet.example"), "fleet.example:80");
        for (url, why) in [
            ("https://127.0.0.1:1", "TLS"),
            ("127.0.0.1:8080", "URL"),
            ("ftp://h", "http://"),
            ("http://h/v1", "path"),
            ("http://user@h", "only a host"),
        ] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.contains(why) && error.contains(url), "{error}");
        }
    }
}

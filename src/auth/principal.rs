//! Who a request turned out to come from.
use std::fmt;

use crate::ids::DeviceId;

/// A caller whose credential was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// No credential was shown.
    Anonymous,
    /// Holds the admin key: may do everything, without limit.
    Admin,
    /// Holds the key of this device, and speaks for it alone.
    Device(DeviceId),
}

impl Principal {
    /// `admin` or `device:rpi-001`, for error details, logs and the audit; `None` for an anonymous caller.
    pub fn user_id(&self) -> Option<String> {
        match self {
            Self::Anonymous => None,
            Self::Admin | Self::Device(_) => Some(self.to_string()),
        }
    }

    /// Whether rate limits do not apply. The reference: "Admin: Unlimited". So `X-Bypass-Rate-Limit` gives the
    /// admin nothing more, and gives nobody else anything.
    pub const fn is_exempt_from_rate_limits(&self) -> bool {
        matches!(self, Self::Admin)
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::Admin => f.write_str("admin"),
            Self::Device(id) => write!(f, "device:{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_is_named_as_error_details_print_it() {
        assert_eq!(Principal::Anonymous.user_id(), None);
        assert_eq!(Principal::Admin.user_id().as_deref(), Some("admin"));
        let device = Principal::Device(DeviceId::parse("rpi-001").unwrap());
        assert_eq!(device.user_id().as_deref(), Some("device:rpi-001"));
    }

    #[test]
    fn only_the_admin_is_without_limits() {
        assert!(Principal::Admin.is_exempt_from_rate_limits());
        assert!(!Principal::Anonymous.is_exempt_from_rate_limits());
        assert!(!Principal::Device(DeviceId::parse("rpi-001").unwrap()).is_exempt_from_rate_limits());
    }
}

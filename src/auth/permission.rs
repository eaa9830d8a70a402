//! What each RPC needs, and who has it.
//!
//! One table, [`rule`], names a permission for every method of `proto/fleetd/v1`; a method that is not in it is
//! refused for everybody but fails a test first, which walks the methods that the proto files declare. The twelve
//! permissions of the API reference keep their names; the methods that it lacks have permissions named alike.
use super::principal::Principal;
use crate::error::{ApiError, ErrorCode};
use crate::ids::DeviceId;

macro_rules! permissions {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        /// A right to do one kind of thing, named as the API reference prints it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Permission {
            $(#[doc = concat!("`", $name, "`")] $variant),+
        }

        impl Permission {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }
    };
}

permissions! {
    DeviceRegister = "device:register",
    DeviceList = "device:list",
    DeviceView = "device:view",
    DeviceUpdate = "device:update",
    DeviceDelete = "device:delete",
    DeviceHeartbeat = "device:heartbeat",
    DeviceCommand = "device:command",
    UpdateCreate = "update:create",
    UpdateDeploy = "update:deploy",
    UpdateView = "update:view",
    UpdateRollback = "update:rollback",
    UpdateApprove = "update:approve",
    AnalyticsView = "analytics:view",
    AnalyticsExport = "analytics:export",
    AdminKeys = "admin:keys",
    AdminWebhooks = "admin:webhooks",
    AdminAudit = "admin:audit",
}

/// What a device's own key may do with a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceAccess {
    /// Nothing: the method is for operators.
    Never,
    /// Call it for itself: the `device_id` of the request must be the key's own.
    Own,
    /// Call it: the request names no device, and what it gives every device may have.
    Any,
}

/// What a method needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub permission: Permission,
    pub devices: DeviceAccess,
}

const fn operators(permission: Permission) -> Option<Rule> {
    Some(Rule { permission, devices: DeviceAccess::Never })
}

const fn own_device(permission: Permission) -> Option<Rule> {
    Some(Rule { permission, devices: DeviceAccess::Own })
}

const fn every_device(permission: Permission) -> Option<Rule> {
    Some(Rule { permission, devices: DeviceAccess::Any })
}

/// The rule of a method, given as the path of its HTTP request (`/fleetd.v1.DeviceService/Heartbeat`, with or
/// without the first slash); `None` for a path that is no method of fleetd.
pub fn rule(method_path: &str) -> Option<Rule> {
    use Permission as P;
    let path = method_path.strip_prefix('/').unwrap_or(method_path);
    let (service, method) = path.strip_prefix("fleetd.v1.")?.split_once('/')?;
    match service {
        "DeviceService" => match method {
            "RegisterDevice" | "BatchRegisterDevices" => operators(P::DeviceRegister),
            "ListDevices" => operators(P::DeviceList),
            "GetDevice" => own_device(P::DeviceView),
            "UpdateDevice" => operators(P::DeviceUpdate),
            "DeleteDevice" => operators(P::DeviceDelete),
            // Streams and batches name a device in each heartbeat: the handler authorizes each.
            "Heartbeat" | "StreamHeartbeats" | "BatchHeartbeat" => own_device(P::DeviceHeartbeat),
            "StreamEvents" | "ListCommands" => operators(P::DeviceView),
            "SendCommand" | "CancelCommand" => operators(P::DeviceCommand),
            _ => None,
        },
        "UpdateService" => match method {
            "CreateUpdate" => operators(P::UpdateCreate),
            "DeployUpdate" | "PauseDeployment" | "ResumeDeployment" | "PromoteDeployment" | "CancelDeployment"
            | "RetryFailed" => operators(P::UpdateDeploy),
            "ApproveDeployment" => operators(P::UpdateApprove),
            "RollbackDeployment" => operators(P::UpdateRollback),
            // What a device has to know of an update comes with its heartbeats; the fleet's affairs are not its own.
            "GetUpdate"
            | "ListUpdates"
            | "GetDeploymentStatus"
            | "ListDeployments"
            | "PlanDeployment"
            | "ExplainDevice" => operators(P::UpdateView),
            "ReportUpdateStatus" => own_device(P::DeviceHeartbeat),
            _ => None,
        },
        "BinaryService" => match method {
            "UploadBinary" => operators(P::UpdateCreate),
            "DownloadBinary" => every_device(P::UpdateView),
            _ => None,
        },
        "AnalyticsService" => match method {
            "GetMetrics" | "GetDeviceHealth" => operators(P::AnalyticsView),
            "ExportData" | "GetExport" => operators(P::AnalyticsExport),
            _ => None,
        },
        "AdminService" => match method {
            "CreateApiKey" | "ListApiKeys" | "RevokeApiKey" => operators(P::AdminKeys),
            "CreateWebhook" | "ListWebhooks" | "DeleteWebhook" | "TestWebhook" | "ListWebhookDeliveries" => {
                operators(P::AdminWebhooks)
            }
            "ListAuditEntries" => operators(P::AdminAudit),
            _ => None,
        },
        _ => None,
    }
}

/// The permission that a method needs; see [`rule`].
pub fn required_permission(method_path: &str) -> Option<Permission> {
    rule(method_path).map(|rule| rule.permission)
}

/// Lets `principal` call a method with this rule, for `device` where the request names one.
///
/// # Errors
/// UNAUTHENTICATED for an anonymous caller, PERMISSION_DENIED (with permission and user id) for a known one.
pub fn authorize(principal: &Principal, rule: Rule, device: Option<&DeviceId>) -> Result<(), ApiError> {
    match (principal, rule.devices) {
        (Principal::Admin, _) | (Principal::Device(_), DeviceAccess::Any) => Ok(()),
        (Principal::Anonymous, _) => Err(ApiError::new(
            ErrorCode::Unauthenticated,
            "Authentication required: send `Authorization: Bearer KEY` or `X-API-Key: KEY`",
        )),
        (Principal::Device(own), DeviceAccess::Own) => match device {
            Some(device) if device == own => Ok(()),
            Some(device) => Err(denied(principal, rule.permission, &format!(" for device {device}"))),
            None => Err(denied(principal, rule.permission, "")),
        },
        (Principal::Device(_), DeviceAccess::Never) => Err(denied(principal, rule.permission, "")),
    }
}

/// The reference's error: "User does not have permission device:delete", with permission and user in its details.
fn denied(principal: &Principal, permission: Permission, of_what: &str) -> ApiError {
    let message = format!("User does not have permission {}{of_what}", permission.as_str());
    let mut error = ApiError::new(ErrorCode::PermissionDenied, message);
    error.permission = Some(permission.as_str());
    error.user_id = principal.user_id();
    error
}

#[cfg(test)]
mod tests {
    use fleetd_proto::METHODS;

    use super::*;

    #[test]
    fn every_method_of_the_contract_has_the_rule_that_its_comment_promises() {
        assert!(METHODS.len() >= REFERENCE.len());
        for method in METHODS {
            let rule =
                rule(method.path).unwrap_or_else(|| panic!("{} has no rule in src/auth/permission.rs", method.path));
            assert_eq!(rule.permission.as_str(), method.permission, "{}", method.path);
        }
    }

    #[test]
    fn no_permission_is_left_without_a_method() {
        for permission in Permission::ALL {
            assert!(
                METHODS.iter().any(|method| method.permission == permission.as_str()),
                "{} guards nothing",
                permission.as_str()
            );
        }
    }

    #[test]
    fn a_device_key_opens_these_methods_and_no_others() {
        let principal = Principal::Device(device("rpi-001"));
        let mut open: Vec<_> = METHODS
            .iter()
            .filter(|method| authorize(&principal, rule(method.path).unwrap(), Some(&device("rpi-001"))).is_ok())
            .map(|method| method.name)
            .collect();
        open.sort_unstable();
        let expected =
            ["BatchHeartbeat", "DownloadBinary", "GetDevice", "Heartbeat", "ReportUpdateStatus", "StreamHeartbeats"];
        assert_eq!(open, expected);
    }

    /// The reference's own list of methods and permissions.
    const REFERENCE: [(&str, &str); 15] = [
        ("DeviceService/RegisterDevice", "device:register"),
        ("DeviceService/ListDevices", "device:list"),
        ("DeviceService/GetDevice", "device:view"),
        ("DeviceService/UpdateDevice", "device:update"),
        ("DeviceService/DeleteDevice", "device:delete"),
        ("DeviceService/Heartbeat", "device:heartbeat"),
        ("UpdateService/CreateUpdate", "update:create"),
        ("UpdateService/DeployUpdate", "update:deploy"),
        ("UpdateService/GetDeploymentStatus", "update:view"),
        ("UpdateService/RollbackDeployment", "update:rollback"),
        ("AnalyticsService/GetMetrics", "analytics:view"),
        ("AnalyticsService/GetDeviceHealth", "analytics:view"),
        ("AnalyticsService/ExportData", "analytics:export"),
        ("BinaryService/UploadBinary", "update:create"),
        ("BinaryService/DownloadBinary", "update:view"),
    ];

    fn rule_of(method: &str) -> Rule {
        rule(&format!("/fleetd.v1.{method}")).unwrap_or_else(|| panic!("{method} has no rule"))
    }

    fn device(id: &str) -> DeviceId {
        DeviceId::parse(id).unwrap()
    }

    #[test]
    fn the_references_methods_need_the_references_permissions() {
        for (method, permission) in REFERENCE {
            assert_eq!(rule_of(method).permission.as_str(), permission, "{method}");
        }
    }

    #[test]
    fn what_is_no_method_has_no_rule() {
        for path in ["", "/", "/fleetd.v1.DeviceService", "/fleetd.v1.DeviceService/", "/healthz"] {
            assert_eq!(rule(path), None, "{path:?}");
        }
        assert_eq!(rule("/fleetd.v2.DeviceService/Heartbeat"), None);
        assert_eq!(rule("//fleetd.v1.DeviceService/Heartbeat"), None);
        assert_eq!(rule("/fleetd.v1.UpdateService/Heartbeat"), None);
        assert_eq!(required_permission("fleetd.v1.DeviceService/Heartbeat"), Some(Permission::DeviceHeartbeat));
    }

    #[test]
    fn a_device_speaks_for_itself_and_for_no_other() {
        let principal = Principal::Device(device("rpi-001"));
        for method in ["DeviceService/Heartbeat", "DeviceService/GetDevice", "UpdateService/ReportUpdateStatus"] {
            let rule = rule_of(method);
            authorize(&principal, rule, Some(&device("rpi-001"))).unwrap();
            let error = authorize(&principal, rule, Some(&device("rpi-002"))).unwrap_err();
            assert_eq!(error.code, ErrorCode::PermissionDenied, "{method}");
            assert_eq!(error.user_id.as_deref(), Some("device:rpi-001"));
            assert_eq!(
                error.message,
                format!("User does not have permission {} for device rpi-002", rule.permission.as_str())
            );
            authorize(&principal, rule, None).unwrap_err();
        }
        authorize(&principal, rule_of("BinaryService/DownloadBinary"), None).unwrap();
    }

    #[test]
    fn a_device_is_denied_what_is_for_operators_in_the_references_words() {
        let principal = Principal::Device(device("rpi-001"));
        let error = authorize(&principal, rule_of("DeviceService/DeleteDevice"), Some(&device("rpi-001"))).unwrap_err();
        assert_eq!(error.code, ErrorCode::PermissionDenied);
        assert_eq!(error.message, "User does not have permission device:delete");
        assert_eq!(error.permission, Some("device:delete"));
        assert_eq!(error.user_id.as_deref(), Some("device:rpi-001"));
    }

    #[test]
    fn the_admin_may_do_everything_and_an_anonymous_caller_nothing() {
        for (method, _) in REFERENCE {
            for target in [None, Some(&device("rpi-001"))] {
                authorize(&Principal::Admin, rule_of(method), target).unwrap();
                let error = authorize(&Principal::Anonymous, rule_of(method), target).unwrap_err();
                assert_eq!(error.code, ErrorCode::Unauthenticated, "{method}");
            }
        }
    }

    #[test]
    fn permissions_have_distinct_names() {
        let names: std::collections::HashSet<_> =
            Permission::ALL.iter().map(|permission| permission.as_str()).collect();
        assert_eq!(names.len(), Permission::ALL.len());
    }
}

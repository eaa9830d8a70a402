//! ListDevices, and the choice of devices for other RPCs: from a filter, an order and a page token to devices.
//!
//! The fleet index finds which devices are on the page; the registry and the device's live state say what they look
//! like, as GetDevice shows them. A device that changes between the two is shown as it is now, also when it no longer
//! matches; one that is deleted between them is left out, so a page may be short of one and still have a next.
//!
//! Pages go on after the values and the id of their last device, so devices that stay as they are come exactly once,
//! whatever comes and goes around them. One whose sort value changes between two pages (`last_seen` does with each
//! heartbeat) may come twice, or not at all: it is not where it was.
use std::sync::Arc;

use fleetd_proto::v1::{ListDevicesRequest, ListDevicesResponse};

use super::access::Call;
use super::device_service::DeviceService;
use super::pages::{self, Tokens};
use crate::actors::entry::DeviceEntry;
use crate::clock::UnixMillis;
use crate::error::ApiError;
use crate::query::{Digest, Filter, OrderBy, PageToken, QueryError};

pub const LIST_DEVICES: &str = "fleetd.v1.DeviceService/ListDevices";

/// A request that was understood.
struct Asked {
    size: usize,
    filter: Filter,
    order: OrderBy,
    after: Option<PageToken>,
    digest: Digest,
}

impl Asked {
    fn of(request: &ListDevicesRequest, tokens: &Tokens, now: UnixMillis) -> Result<Self, ApiError> {
        let size = pages::size_of(request.page_size)?;
        let mut filter = Filter::parse(&request.filter, now).map_err(|error| invalid("filter", &error))?;
        let order = OrderBy::parse(&request.order_by).map_err(|error| invalid("order_by", &error))?;
        // The canonical texts: how a query is spelled does not matter.
        let digest = Digest::of(&[LIST_DEVICES, &filter.to_string(), &order.to_string()]);
        let after = tokens.read(&request.page_token, digest)?;
        if let Some(token) = &after {
            // `-1h` is an hour before the first page on all pages.
            filter = Filter::parse(&request.filter, token.now).map_err(|error| invalid("filter", &error))?;
        }
        Ok(Self { size, filter, order, after, digest })
    }
}

fn invalid(field: &str, error: &QueryError) -> ApiError {
    ApiError::invalid_argument(format!("{field}: {error}"))
}

impl DeviceService {
    /// Permission: `device:list`.
    pub async fn list(&self, call: &mut Call, request: ListDevicesRequest) -> Result<ListDevicesResponse, ApiError> {
        self.access.authorize(call, LIST_DEVICES).await?;
        let Asked { size, filter, order, after, digest } = Asked::of(&request, &self.tokens, UnixMillis::now())?;
        let now = filter.now();
        let after = after.map(|token| (token.values, token.id));
        let mut page = self.queries.page(filter, order, after, size).await?;

        let ids = page.places.iter().map(|place| place.entry.id.clone()).collect();
        let next_page_token = match page.places.last_mut() {
            Some(last) if page.has_next => {
                let (values, id) = (std::mem::take(&mut last.values), last.entry.id.to_string());
                self.tokens.write(&PageToken { now, values, id }, digest)
            }
            _ => String::new(),
        };
        // In the order of `ids`, without those that are gone.
        let stored = self.store.devices(ids).await?;
        let mut places = page.places.iter();
        let devices = stored.into_iter().filter_map(|device| {
            let place = places.find(|place| place.entry.id == device.id)?;
            let live = place.entry.live();
            Some(self.shown(device, &live))
        });
        let devices = devices.collect();
        Ok(ListDevicesResponse { devices, next_page_token, total_count: i32::try_from(page.total).unwrap_or(i32::MAX) })
    }

    /// The devices that match a filter now; `field` is what the request calls it. At most the whole fleet, at 8 bytes
    /// a device.
    pub(super) async fn select(&self, field: &str, filter: &str) -> Result<Vec<Arc<DeviceEntry>>, ApiError> {
        let filter = Filter::parse(filter, UnixMillis::now()).map_err(|error| invalid(field, &error))?;
        Ok(self.queries.select(filter, usize::MAX).await?.devices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::query::SortValue;

    const SECRET: [u8; 32] = [7; 32];

    fn asked(filter: &str, order_by: &str, page_token: &str) -> Result<Asked, ApiError> {
        let request = ListDevicesRequest {
            page_size: 0,
            page_token: page_token.into(),
            filter: filter.into(),
            order_by: order_by.into(),
        };
        Asked::of(&request, &Tokens::new(SECRET), UnixMillis::from_millis_clamped(1_000_000))
    }

    fn token(filter: &str, order_by: &str) -> String {
        let asked = asked(filter, order_by, "").expect("a valid query");
        let values = vec![SortValue::Number(1.0)];
        let now = UnixMillis::from_millis_clamped(17);
        Tokens::new(SECRET).write(&PageToken { now, values, id: "a".into() }, asked.digest)
    }

    #[test]
    fn a_token_is_good_for_its_query_however_that_is_spelled() {
        let token = token("cpu_usage:>80 AND memory_usage:>90", "cpu_usage DESC");
        let again =
            asked("  cpu_usage:>80   and memory_usage:>90.0", "cpu_usage  desc", &token).expect("the same query");
        assert_eq!(again.filter.now().as_millis(), 17, "times count from the first page");
        for (filter, order) in
            [("cpu_usage:>80", "cpu_usage DESC"), ("cpu_usage:>80 AND memory_usage:>90", "cpu_usage"), ("", "")]
        {
            let error = asked(filter, order, &token).err().expect("another query");
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.starts_with("page_token belongs to a list with another"), "{}", error.message);
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (outcome, beginning) in [
            (asked("cpu_usage:>x", "", ""), "filter: column "),
            (asked("", "nmae", ""), "order_by: column 1: "),
            (asked("", "", "v1.61"), "page_token is not one that this server made"),
        ] {
            let error = outcome.err().expect("refused");
            assert!(error.message.starts_with(beginning), "{}", error.message);
        }
    }
}

//! Clients that ask for large answers and do not read them.
use std::time::Duration;

use fleetd_proto::v1::{GetMetricsRequest, GetMetricsResponse};
use prost::Message as _;
use serde_json::json;

use super::limits::fill;
use super::naive::HOUR;
use super::{answer, post, server, time, Server, ADMIN_KEY};
use crate::support::client::Client;
use crate::support::wait_until;
use crate::support::wire::Http1;
use fleetd::clock::UnixMillis;

/// For a question of hundreds of thousands of points on a machine that does ten other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of 500 devices 1,300 points each: some 43 MB of JSON, and 166 MB while it is made.
const DEVICES: u64 = 500;
const TIMES: u64 = 1_300;

fn held(server: &Server) -> f64 {
    server.metrics().get("fleetd_analytics_answers_held_bytes")
}

#[test]
fn answers_that_nobody_reads_leave_no_room_for_more_until_their_clients_are_gone() {
    let server = server();
    fill(&server, DEVICES, TIMES);
    let begin = UnixMillis::now().as_millis() - 5 * HOUR - 60_000;
    let large = json!({ "metric_names": ["cpu_usage"], "start_time": time(begin), "end_time": time(begin + HOUR),
        "interval": "1s", "group_by": ["device_id"] })
    .to_string();
    let mut slow = Vec::new();
    for number in 1..=3 {
        let mut connection = Http1::open(server.http());
        let ask = Client::Json1.call("AnalyticsService/GetMetrics", Some(ADMIN_KEY), large.as_bytes());
        connection.send(&ask.on_http1());
        slow.push(connection);
        // While it is made it takes more.
        let (least, most) = (30e6 * f64::from(number), 75e6 * f64::from(number));
        let waits = wait_until(PATIENCE, || (least..most).contains(&held(&server)));
        assert!(waits, "{} bytes are held by {number} answers\n{}", held(&server), server.log());
    }
    let refused = post(&server, "AnalyticsService/GetMetrics", Some(ADMIN_KEY), &large);
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("UNAVAILABLE")), "{}", refused.text());
    assert!(refused.text().contains("leave no room for it; try again in a moment"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(server.metrics().get("fleetd_analytics_answers_refused_total"), 1.0);

    // A chart is no large answer.
    let small = json!({ "metric_names": ["cpu_usage"], "start_time": time(begin), "end_time": time(begin + HOUR) });
    assert_eq!(answer(&server, &small)["summary"]["seriesCount"], 1);

    drop(slow);
    assert!(wait_until(PATIENCE, || held(&server) == 0.0), "{} bytes are held by nobody", held(&server));
    for client in [Client::Json1, Client::Json2] {
        let ask = client.call("AnalyticsService/GetMetrics", Some(ADMIN_KEY), large.as_bytes());
        let reply = client.send(server.http(), &ask);
        assert!(
            reply.status == 200 && reply.body.len() > 30_000_000,
            "{client:?}: {} {}",
            reply.status,
            reply.body.len()
        );
        assert!(reply.body.ends_with(b"}"), "{client:?} has it whole");
        assert!(wait_until(PATIENCE, || held(&server) == 0.0), "{} bytes are held by nobody", held(&server));
    }
}

#[test]
fn every_protocol_has_its_answer_whole() {
    let server = server();
    fill(&server, 100, 100);
    let begin = UnixMillis::now().as_millis() - 5 * HOUR - 60_000;
    let question = GetMetricsRequest {
        metric_names: vec!["cpu_usage".into()],
        start_time: Some(fleetd_proto::Timestamp::from_unix_millis(begin)),
        interval: Some(fleetd_proto::Duration { seconds: 4, nanos: 0 }),
        group_by: vec!["device_id".into()],
        ..Default::default()
    };
    for client in [Client::Proto1, Client::Connect2, Client::GrpcWeb1, Client::Grpc2] {
        let ask = client.call("AnalyticsService/GetMetrics", Some(ADMIN_KEY), &question.encode_to_vec());
        let reply = client.send(server.http(), &ask);
        assert_eq!(client.outcome(&reply).code, "OK", "{client:?}: {}", client.outcome(&reply).message);
        let told = GetMetricsResponse::decode(&*client.message(&reply)).expect("an answer");
        assert_eq!(told.series.len(), 100, "{client:?}");
    }
}

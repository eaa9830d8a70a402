//! The dashboards as they lie in `deploy/grafana`, and what must hold of each without a server.
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

/// The provisioned data source.
const DATA_SOURCE: &str = "fleetd-clickhouse";
const PLUGIN: &str = "grafana-clickhouse-datasource";

/// Variables that Grafana itself has in links and names of fields.
const BUILT_IN: [&str; 3] = ["__field", "__value", "__url_time_range"];

pub struct Dashboard {
    pub file: String,
    pub uid: String,
    json: Value,
}

/// What a query's answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Series,
    /// States over time.
    Timeline,
    /// A name and a number a row.
    Bars,
    Stat,
    Table,
    Variable,
}

pub struct Query {
    /// Dashboard and panel.
    pub name: String,
    pub kind: Kind,
    pub sql: String,
    /// The panel shows text and needs no unit.
    pub is_text: bool,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana")
}

pub fn all() -> Vec<Dashboard> {
    let files = fs::read_dir(folder().join("dashboards")).expect("the dashboards");
    let mut boards: Vec<Dashboard> = files
        .map(|file| {
            let path = file.expect("a file").path();
            let text = fs::read_to_string(&path).expect("its text");
            let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let uid = json["uid"].as_str().expect("a uid").to_owned();
            Dashboard { file: path.file_name().expect("a name").to_string_lossy().into_owned(), uid, json }
        })
        .collect();
    boards.sort_by(|a, b| a.file.cmp(&b.file));
    assert_eq!(boards.len(), 4, "the dashboards of the README");
    boards
}

fn text<'a>(value: &'a Value, what: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("{what} is {value}, not a text"))
}

impl Dashboard {
    fn panels(&self) -> impl Iterator<Item = &Value> {
        self.json["panels"].as_array().expect("panels").iter().filter(|panel| panel["type"] != "row")
    }

    fn variables(&self) -> &Vec<Value> {
        self.json["templating"]["list"].as_array().expect("variables")
    }

    pub fn queries(&self) -> Vec<Query> {
        let mut queries = Vec::new();
        for variable in self.variables().iter().filter(|variable| variable["type"] == "query") {
            let name = format!("{}: the variable {}", self.file, variable["name"]);
            let sql = text(&variable["query"]["rawSql"], &name).to_owned();
            queries.push(Query { name, kind: Kind::Variable, sql, is_text: false });
        }
        for panel in self.panels() {
            let name = format!("{}: {}", self.file, panel["title"]);
            let kind = match text(&panel["type"], &name) {
                "timeseries" => Kind::Series,
                "state-timeline" => Kind::Timeline,
                "bargauge" => Kind::Bars,
                "stat" => Kind::Stat,
                "table" => Kind::Table,
                other => panic!("{name}: what does a {other} need?"),
            };
            let is_text = panel["fieldConfig"]["defaults"]["unit"].is_null() && kind == Kind::Stat;
            for target in panel["targets"].as_array().expect("targets") {
                let sql = text(&target["rawSql"], &name).to_owned();
                queries.push(Query { name: name.clone(), kind, sql, is_text });
            }
        }
        queries
    }
}

#[test]
fn every_dashboard_and_panel_says_what_it_is() {
    let mut uids = BTreeSet::new();
    let mut titles = BTreeSet::new();
    for board in all() {
        assert!(uids.insert(board.uid.clone()), "{} is there twice", board.uid);
        assert!(
            titles.insert(text(&board.json["title"], "title").to_owned()),
            "{}: its title is another's",
            board.file
        );
        assert!(!text(&board.json["description"], "description").is_empty());
        let mut ids = BTreeSet::new();
        for panel in board.json["panels"].as_array().expect("panels") {
            let title = text(&panel["title"], "a title");
            assert!(!title.is_empty() && ids.insert(panel["id"].as_u64().expect("an id")), "{}: {title}", board.file);
        }
        for panel in board.panels() {
            let title = text(&panel["title"], "a title");
            let description = text(&panel["description"], title);
            assert!(description.len() > 15 && description.ends_with('.'), "{title}: {description:?}");
            // Tables have units by column; states and texts have none.
            let shows_numbers = matches!(text(&panel["type"], title), "timeseries" | "bargauge");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
            assert!(!shows_numbers || unit.is_some_and(|unit| !unit.is_empty()), "{title} has no unit");
        }
    }
}

#[test]
fn every_query_goes_to_the_provisioned_data_source() {
    for name in ["provisioning/datasources/fleetd.yaml", "provisioning/dashboards/fleetd.yaml"] {
        let yaml = fs::read_to_string(folder().join(name)).expect(name);
        let has = |line: &str| yaml.lines().any(|one| one.trim().trim_start_matches("- ") == line);
        if name.contains("datasources") {
            assert!(has(&format!("uid: {DATA_SOURCE}")) && has(&format!("type: {PLUGIN}")), "{yaml}");
        }
        assert!(has("apiVersion: 1"), "{yaml}");
    }
    for board in all() {
        let mut found = 0;
        walk(&board.json, &mut |key, value| {
            if key == "datasource" {
                found += 1;
                let pair = (value["type"].as_str(), value["uid"].as_str());
                assert_eq!(pair, (Some(PLUGIN), Some(DATA_SOURCE)), "{}", board.file);
            }
        });
        assert!(found > 10, "{}: {found} references", board.file);
        for panel in board.panels() {
            for target in panel["targets"].as_array().expect("targets") {
                // `QueryType` and the format of sqlds; series are format 0, tables 1.
                let is_series = panel["type"] == "timeseries";
                let expected = if is_series { (0, "timeseries") } else { (1, "table") };
                let got = (target["format"].as_u64().expect("a format"), text(&target["queryType"], "queryType"));
                assert_eq!(got, expected, "{}", panel["title"]);
                assert_eq!((&target["editorType"], target["refId"].is_string()), (&Value::from("sql"), true));
            }
        }
    }
}

#[test]
fn every_variable_that_is_used_is_defined_and_every_defined_one_is_used() {
    for board in all() {
        let defined: BTreeSet<&str> = board.variables().iter().map(|one| text(&one["name"], "name")).collect();
        let mut used = BTreeSet::new();
        walk(&board.json, &mut |key, value| {
            let Some(value) = value.as_str().filter(|_| key != "name") else { return };
            for part in value.split("${").skip(1) {
                let name: String = part.chars().take_while(|one| one.is_alphanumeric() || *one == '_').collect();
                used.insert(name);
            }
        });
        for name in &used {
            assert!(defined.contains(name.as_str()) || BUILT_IN.contains(&name.as_str()), "{}: {name}", board.file);
        }
        for name in defined {
            assert!(used.contains(name), "{}: {name} is not used", board.file);
        }
    }
}

#[test]
fn links_lead_to_dashboards_and_variables_that_are_there() {
    let boards = all();
    for board in &boards {
        walk(&board.json, &mut |key, value| {
            let Some(link) = value.as_str().filter(|url| key == "url" && url.starts_with("/d/")) else { return };
            let (uid, query) = link["/d/".len()..].split_once('?').expect("a variable");
            let to = boards.iter().find(|one| one.uid == uid).unwrap_or_else(|| panic!("{link} leads nowhere"));
            let name = query.strip_prefix("var-").and_then(|rest| rest.split('=').next()).expect("a variable");
            assert!(to.variables().iter().any(|one| one["name"] == name), "{link}");
        });
    }
}

#[test]
fn no_two_panels_lie_on_one_another() {
    for board in all() {
        let place = |panel: &Value, side: &str| panel["gridPos"][side].as_u64().expect("a place");
        let mut taken = BTreeSet::new();
        for panel in board.json["panels"].as_array().expect("panels") {
            let (x, y) = (place(panel, "x"), place(panel, "y"));
            assert!(x + place(panel, "w") <= 24, "{} is too far right", panel["title"]);
            for cell in (y..y + place(panel, "h")).flat_map(|y| (x..x + place(panel, "w")).map(move |x| (x, y))) {
                assert!(taken.insert(cell), "{}: {} lies on another panel", board.file, panel["title"]);
            }
        }
    }
}

/// Every key and value, however deep.
fn walk(value: &Value, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                visit(key, value);
                walk(value, visit);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

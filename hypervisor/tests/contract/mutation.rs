//! Whether a monitor's double refuses what is not right: every request that comes is tried in many wrong forms, and in every
//! state that there was, on copies of the monitor. What is found out is written down.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::monitor::{Because, Monitor, Request};

/// What is found out about the requests of one process.
pub struct Examination {
    /// The monitor in every state that it was in.
    states: Vec<Monitor>,
    requests: Vec<Request>,
    lines: BTreeSet<String>,
    report: Option<PathBuf>,
}

/// What the reports of many processes say.
#[derive(Debug, Default)]
pub struct Findings {
    /// Requests that were carried out: method and path, as the description has it.
    pub served: BTreeSet<String>,
    /// Those that were refused in a state of the monitor, for that state.
    pub refused_by_state: BTreeSet<String>,
    /// Wrong forms that were refused because of the description.
    pub refused: usize,
    /// Wrong forms that were not.
    pub passed: Vec<String>,
    /// What was said: each simple value of the requests, and each argument of the programs.
    pub said: BTreeSet<String>,
}

impl Examination {
    pub fn new(fresh: Monitor, reports: Option<PathBuf>) -> Self {
        Self {
            states: vec![fresh],
            requests: Vec::new(),
            lines: BTreeSet::new(),
            report: reports.map(|directory| directory.join(std::process::id().to_string())),
        }
    }

    /// The program was called like this.
    pub fn called(&mut self, args: &[String]) {
        let lines = args.iter().map(|arg| format!("said argument {arg}"));
        self.lines.extend(lines);
        self.write();
    }

    /// Before a request is carried out: all of its wrong forms are refused.
    pub fn examine(&mut self, monitor: &Monitor, request: &Request) {
        if self.report.is_none() {
            return;
        }
        let call = call(monitor, request);
        for (what, wrong) in wrong_forms(monitor, request) {
            let line = match monitor.clone().serve(&wrong) {
                Err(refusal) if refusal.because == Because::Description => format!("refused {call}: {what}"),
                other => format!("PASSED {call}: {what}: {other:?}"),
            };
            self.lines.insert(line);
        }
        self.write();
    }

    /// After it was carried out: it, and those before it, are tried in all states.
    pub fn served(&mut self, monitor: &Monitor, request: &Request) {
        if self.report.is_none() {
            return;
        }
        let name = call(monitor, request);
        self.lines.insert(format!("served {name}"));
        let mut places = Vec::new();
        walk(&request.body, &mut Vec::new(), &mut places);
        for place in places {
            let value = request.body.pointer(&format!("/{}", place.join("/")));
            if let Some(value) = value.filter(|value| !value.is_object() && !value.is_array()) {
                self.lines
                    .insert(format!("said {name} {} = {value}", place.join(".")));
            }
        }
        self.states.push(monitor.clone());
        self.requests.push(request.clone());
        let mut found = Vec::new();
        let newest = self.requests.iter().map(|request| (monitor, request));
        let all = self.states.iter().map(|state| (state, request));
        for (state, request) in newest.chain(all) {
            if let Err(refusal) = state.clone().serve(request)
                && refusal.because == Because::State
            {
                found.push(format!("state {}", call(monitor, request)));
            }
        }
        self.lines.extend(found);
        self.write();
    }

    fn write(&self) {
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        if let Some(report) = &self.report {
            std::fs::write(report, lines.join("\n")).expect("a report");
        }
    }
}

impl Findings {
    /// Reads all reports of a directory.
    pub fn read(directory: &Path) -> Self {
        let mut findings = Self::default();
        for entry in std::fs::read_dir(directory).expect("reports").flatten() {
            let text = std::fs::read_to_string(entry.path()).expect("a report");
            for line in text.lines() {
                match line.split_once(' ') {
                    Some(("served", call)) => drop(findings.served.insert(call.into())),
                    Some(("state", call)) => drop(findings.refused_by_state.insert(call.into())),
                    Some(("said", what)) => drop(findings.said.insert(what.into())),
                    Some(("refused", _)) => findings.refused += 1,
                    _ => findings.passed.push(line.into()),
                }
            }
        }
        findings
    }
}

/// Method and path, as the description has it.
fn call(monitor: &Monitor, request: &Request) -> String {
    let operation = monitor.description().operation(&request.method, &request.path);
    let template = operation.map_or(request.path.clone(), |operation| operation.template.to_owned());
    format!("{} {template}", request.method)
}

/// A request in wrong forms, and what is wrong with each.
fn wrong_forms(monitor: &Monitor, request: &Request) -> Vec<(String, Request)> {
    let mut forms = Vec::new();
    let mut add = |what: String, change: &dyn Fn(&mut Request)| {
        let mut wrong = request.clone();
        change(&mut wrong);
        forms.push((what, wrong));
    };
    add("a misspelled path".into(), &|wrong| wrong.path.push('x'));
    add("a path with too much".into(), &|wrong| wrong.path.push_str("/x"));
    add("another method".into(), &|wrong| wrong.method = "POST".into());
    let Ok(operation) = monitor.description().operation(&request.method, &request.path) else {
        return forms;
    };
    let Some(schema) = operation.body() else {
        add("a body".into(), &|wrong| wrong.body = json!({}));
        return forms;
    };
    add("no body".into(), &|wrong| wrong.body = Value::Null);
    add("a list for a body".into(), &|wrong| wrong.body = json!([]));
    let schemas = monitor.description().schemas();
    let mut places = Vec::new();
    walk(&request.body, &mut Vec::new(), &mut places);
    for place in &places {
        let name = place.last().cloned().unwrap_or_default();
        let shown = place.join(".");
        let parent = &place[..place.len() - 1];
        add(format!("{shown} misspelled"), &|wrong| {
            let fields = fields_at(&mut wrong.body, parent);
            if let Some(value) = fields.remove(&name) {
                fields.insert(format!("{name}x"), value);
            }
        });
        add(format!("{shown} of another type"), &|wrong| {
            if let Some(value) = fields_at(&mut wrong.body, parent).get_mut(&name) {
                *value = match value {
                    Value::String(_) => json!(7),
                    Value::Array(_) => json!({"x": 1}),
                    _ => json!("x"),
                };
            }
        });
        add(format!("{shown} null"), &|wrong| {
            fields_at(&mut wrong.body, parent).insert(name.clone(), Value::Null);
        });
        if required_at(&schemas, schema, parent).contains(&name.as_str()) {
            add(format!("{shown} dropped"), &|wrong| {
                fields_at(&mut wrong.body, parent).remove(&name);
            });
        }
    }
    forms
}

/// All fields of an object, at any depth. Numbers stand for the items of a list.
fn walk(value: &Value, at: &mut Vec<String>, places: &mut Vec<Vec<String>>) {
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| (index.to_string(), item))
            .collect(),
        _ => return,
    };
    for (name, inner) in entries {
        at.push(name);
        if value.is_object() {
            places.push(at.clone());
        }
        walk(inner, at, places);
        at.pop();
    }
}

fn fields_at<'v>(body: &'v mut Value, place: &[String]) -> &'v mut Map<String, Value> {
    let mut value = body;
    for name in place {
        value = match value {
            Value::Array(items) => &mut items[name.parse::<usize>().expect("an index")],
            other => &mut other[name.as_str()],
        };
    }
    value.as_object_mut().expect("an object")
}

fn required_at<'d>(
    schemas: &super::schema::Schemas<'d>,
    schema: &'d Value,
    place: &[String],
) -> Vec<&'d str> {
    let mut schema = schemas.resolved(schema);
    for name in place {
        schema = schemas.resolved(match schema["type"] == "array" {
            true => &schema["items"],
            false => &schema["properties"][name.as_str()],
        });
    }
    schemas.required(schema)
}

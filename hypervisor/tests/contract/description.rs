//! A published description of an API (OpenAPI 3 or Swagger 2): its operations, and what their bodies and answers are.

use std::path::Path;

use serde_json::{Map, Value};

use super::schema::Schemas;

/// A description.
pub struct Description {
    document: Value,
    base: String,
}

/// An operation, and the parameter of its path.
pub struct Operation<'d> {
    /// The path as the description has it.
    pub template: &'d str,
    /// The parameter.
    pub parameter: Option<String>,
    value: &'d Value,
}

impl Description {
    /// Reads a file of the directory of descriptions.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a description");
        let document: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).expect("YAML");
        let document = json(document);
        let server = document.pointer("/servers/0/url").and_then(Value::as_str);
        let base = match server {
            Some(url) => url
                .strip_prefix("http://localhost")
                .expect("a local server")
                .to_owned(),
            None => document["basePath"]
                .as_str()
                .unwrap_or_default()
                .trim_end_matches('/')
                .to_owned(),
        };
        Self { document, base }
    }

    /// Its schemas.
    pub fn schemas(&self) -> Schemas<'_> {
        Schemas {
            document: &self.document,
        }
    }

    /// The operation of a request.
    pub fn operation(&self, method: &str, path: &str) -> Result<Operation<'_>, String> {
        let known = path
            .strip_prefix(&self.base)
            .ok_or(format!("{path} is not below {}", self.base))?;
        let paths = self.document["paths"].as_object().expect("paths");
        let found = paths.iter().find_map(|(template, value)| {
            let parameter = fit(template, known)?;
            Some((template, parameter, value))
        });
        let (template, parameter, value) = found.ok_or(format!("there is no path {path}"))?;
        let value = value
            .get(method.to_lowercase())
            .ok_or(format!("{path} has no {method}"))?;
        Ok(Operation {
            template,
            parameter,
            value,
        })
    }
}

/// The parameter of a path that fits a template; `Some(None)` for one that has none.
fn fit(template: &str, path: &str) -> Option<Option<String>> {
    let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    if template.len() != path.len() {
        return None;
    }
    let mut parameter = None;
    for (wanted, given) in template.into_iter().zip(path) {
        match wanted.starts_with('{') && !given.is_empty() {
            true => parameter = Some(given.to_owned()),
            false if wanted == given => {}
            false => return None,
        }
    }
    Some(parameter)
}

impl Operation<'_> {
    /// The schema of its body, if it has one.
    pub fn body(&self) -> Option<&Value> {
        let of_3 = self
            .value
            .pointer("/requestBody/content/application~1json/schema");
        let parameters = self.value["parameters"].as_array().into_iter().flatten();
        let of_2 = parameters
            .filter(|parameter| parameter["in"] == "body")
            .map(|body| &body["schema"])
            .next();
        of_3.or(of_2)
    }

    /// Whether an answer with this status and body is one of those that the description has.
    pub fn check_answer(&self, schemas: &Schemas<'_>, status: u16, body: &Value) -> Result<(), String> {
        let responses = &self.value["responses"];
        let response = responses.get(status.to_string()).or(responses.get("default"));
        let Some(response) = response else {
            // Descriptions leave out most refusals.
            return match status {
                400.. => Ok(()),
                _ => Err(format!(
                    "{}: the description has no answer {status}",
                    self.template
                )),
            };
        };
        let of_3 = response.pointer("/content/application~1json/schema");
        match (of_3.or(response.get("schema")), body) {
            (None, Value::Null) | (None, _) if status >= 400 || body.is_null() => Ok(()),
            (Some(schema), body) => schemas.check(schema, body, self.template),
            (None, body) => Err(format!("{}: {status} has no body, not {body}", self.template)),
        }
    }
}

/// YAML as JSON: the keys of a description are strings and statuses.
fn json(value: serde_yaml_ng::Value) -> Value {
    use serde_yaml_ng::Value as Yaml;

    match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(flag) => flag.into(),
        Yaml::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => integer.into(),
            (None, Some(float)) => float.into(),
            (None, None) => Value::Null,
        },
        Yaml::String(text) => text.into(),
        Yaml::Sequence(items) => items.into_iter().map(json).collect(),
        Yaml::Mapping(entries) => {
            let entries = entries.into_iter().map(|(key, value)| {
                let key = match key {
                    Yaml::String(text) => text,
                    Yaml::Number(number) => number.to_string(),
                    other => panic!("{other:?} is no key of a description"),
                };
                (key, json(value))
            });
            Value::Object(entries.collect::<Map<_, _>>())
        }
        Yaml::Tagged(tagged) => json(tagged.value),
    }
}

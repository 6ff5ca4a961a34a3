//! Whether a JSON value is what a schema of a published description says, read strictly: what the description does not have
//! is refused, even where the real program passes over it.

use serde_json::Value;

/// A description's schemas, by the references to them.
pub struct Schemas<'d> {
    /// The whole description.
    pub document: &'d Value,
}

impl<'d> Schemas<'d> {
    /// What is wrong with `value`; `at` says where it is.
    pub fn check(&self, schema: &'d Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolved(schema);
        let refuse = |problem: String| Err(format!("{at}: {problem}"));
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            return refuse(format!("{value} is none of {allowed:?}"));
        }
        match (schema["type"].as_str(), value) {
            (Some("object"), Value::Object(fields)) => self.check_fields(schema, fields, at),
            (None, Value::Object(fields)) if schema.get("properties").is_some() => {
                self.check_fields(schema, fields, at)
            }
            (Some("array"), Value::Array(items)) => items
                .iter()
                .enumerate()
                .try_for_each(|(index, item)| self.check(&schema["items"], item, &format!("{at}[{index}]"))),
            (Some("string"), Value::String(text)) => match schema["minLength"].as_u64() {
                Some(least) if (text.chars().count() as u64) < least => {
                    refuse(format!("{text:?} is too short"))
                }
                _ => Ok(()),
            },
            (Some("boolean"), Value::Bool(_)) => Ok(()),
            (Some("integer"), Value::Number(number)) => match integer(schema, number) {
                true => Ok(()),
                false => refuse(format!("{number} is out of range")),
            },
            (kind, other) => refuse(format!("{other} is not {}", kind.unwrap_or("known"))),
        }
    }

    fn check_fields(
        &self,
        schema: &'d Value,
        fields: &serde_json::Map<String, Value>,
        at: &str,
    ) -> Result<(), String> {
        let required = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        for name in required {
            if !fields.contains_key(name) {
                return Err(format!("{at}: {name} is missing"));
            }
        }
        for (name, value) in fields {
            let at = format!("{at}.{name}");
            match (schema["properties"].get(name), schema.get("additionalProperties")) {
                (Some(property), _) => self.check(property, value, &at)?,
                (None, Some(Value::Bool(true))) => {}
                (None, Some(other @ Value::Object(_))) => self.check(other, value, &at)?,
                // An object without any property may have any.
                (None, None) if schema.get("properties").is_none() => {}
                (None, _) => return Err(format!("{at} is not in the description")),
            }
        }
        Ok(())
    }

    /// The schema behind a reference. What stands beside a reference is none of it.
    pub fn resolved(&self, schema: &'d Value) -> &'d Value {
        match schema["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference
                    .strip_prefix('#')
                    .expect("a reference into the same description");
                let target = self
                    .document
                    .pointer(pointer)
                    .expect("a schema that is referred to");
                self.resolved(target)
            }
            None => schema,
        }
    }

    /// The names of the fields that an object must have.
    pub fn required(&self, schema: &'d Value) -> Vec<&'d str> {
        let required = self.resolved(schema)["required"].as_array();
        required.into_iter().flatten().filter_map(Value::as_str).collect()
    }
}

fn integer(schema: &Value, number: &serde_json::Number) -> bool {
    let Some(number) = number.as_i128() else {
        return false;
    };
    let bounds = match schema["format"].as_str() {
        Some("int8") => (i8::MIN.into(), i8::MAX.into()),
        Some("uint8") => (0, u8::MAX.into()),
        Some("int16") => (i16::MIN.into(), i16::MAX.into()),
        Some("uint16") => (0, u16::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    };
    let bound = |key: &str| schema[key].as_i64().map(i128::from);
    let least = bound("minimum").unwrap_or(bounds.0).max(bounds.0);
    let most = bound("maximum").unwrap_or(bounds.1).min(bounds.1);
    (least..=most).contains(&number)
}

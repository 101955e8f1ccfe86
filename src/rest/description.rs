//! What `/openapi.json` says beyond the routes themselves: bodies, answers, and the one shape of errors.
//!
//! Handlers read forms and JSON of unmodified clients, whose keys are open, so their types are not those
//! of structures; the shapes stand here, in one table each.

use serde_json::{Map, Value, json};

/// Name, kind, and whether it has to be there.
type Fields = &'static [(&'static str, Field, bool)];

/// Fields of forms: path, method, and for each field its name, kind, and whether it has to be there.
const FORMS: &[(&str, &str, Fields)] = &[
    (
        "/datastore/image",
        "put",
        &[("file", Field::File, true), ("params", Field::Text, false)],
    ),
    (
        "/datastore/",
        "put",
        &[("file", Field::File, true), ("params", Field::Text, false)],
    ),
    (
        "/datastore/label",
        "put",
        &[("label", Field::File, true), ("params", Field::Text, false)],
    ),
    (
        "/datastore/image/info",
        "put",
        &[("info", Field::Text, false)],
    ),
    (
        "/datastore/label/info",
        "put",
        &[("info", Field::Text, false)],
    ),
    (
        "/datastore/updatelabelinfo",
        "put",
        &[("params", Field::Text, false)],
    ),
    (
        "/infer/{model}",
        "post",
        &[
            ("params", Field::Text, false),
            ("file", Field::File, false),
            ("label", Field::File, false),
        ],
    ),
    ("/session/", "put", &[("files", Field::Files, true)]),
    ("/model/{model}", "put", &[("file", Field::File, true)]),
];

/// Routes that take a JSON object, or nothing.
const OBJECTS: &[(&str, &str)] = &[
    ("/activelearning/{strategy}", "post"),
    ("/batch/infer/{model}", "post"),
    ("/models/{model}/keep", "post"),
    ("/models/{model}/pin", "post"),
    ("/models/{model}/publish", "post"),
    ("/models/{model}/rollback", "post"),
    ("/models/{model}/unpin", "post"),
    ("/reviews/", "put"),
    ("/rounds/settings", "put"),
    ("/rounds/{id}", "post"),
    ("/scoring/", "post"),
    ("/scoring/{method}", "post"),
    ("/train/", "post"),
    ("/train/{model}", "post"),
];

/// Values that a query parameter can have: path, name, values.
const CHOICES: &[(&str, &str, &[&str])] = &[
    ("/datastore/", "output", &["train", "stats", "all"]),
    (
        "/infer/{model}",
        "output",
        &["image", "json", "all", "dicom_seg"],
    ),
    (
        "/batch/infer/{model}",
        "images",
        &["all", "labeled", "unlabeled"],
    ),
];

/// Answers that are no JSON: path, method, media types.
const FILES: &[(&str, &str, &[&str])] = &[
    ("/datastore/image", "get", &["application/octet-stream"]),
    ("/datastore/label", "get", &["application/octet-stream"]),
    ("/datastore/dataset", "get", &["application/octet-stream"]),
    ("/datastore/label/map", "get", &["application/octet-stream"]),
    ("/model/{model}", "get", &["application/octet-stream"]),
    (
        "/infer/{model}",
        "post",
        &[
            "multipart/form-data",
            "application/octet-stream",
            "application/json",
        ],
    ),
    (
        "/session/{session_id}",
        "get",
        &[
            "application/json",
            "application/octet-stream",
            "application/dicom",
            "application/zip",
        ],
    ),
    ("/logs/", "get", &["text/html", "text/plain"]),
    ("/logs/gpu", "get", &["text/plain"]),
    ("/metrics", "get", &["text/plain"]),
];

/// JSON answers with a shape: path, method, name of the shape.
const SHAPES: &[(&str, &str, &str)] = &[
    ("/info/", "get", "Info"),
    ("/datastore/image", "put", "ImageId"),
    ("/datastore/", "put", "ImageId"),
    ("/datastore/label", "put", "LabelId"),
    ("/datastore/image/info", "put", "Nothing"),
    ("/datastore/label/info", "put", "Nothing"),
    ("/datastore/updatelabelinfo", "put", "Nothing"),
    ("/datastore/label/confirm", "put", "Nothing"),
    ("/session/", "put", "NewSession"),
    ("/session/{session_id}", "delete", "Session"),
    ("/train/", "get", "Tasks"),
    ("/train/", "delete", "Stopped"),
    ("/batch/infer", "get", "Tasks"),
    ("/batch/infer", "delete", "Stopped"),
    ("/scoring/", "get", "Tasks"),
    ("/scoring/", "delete", "Stopped"),
    ("/livez", "get", "Live"),
    ("/readyz", "get", "Ready"),
];

#[derive(Clone, Copy)]
enum Field {
    File,
    Files,
    Text,
}

impl Field {
    fn schema(self) -> Value {
        match self {
            Self::File => json!({ "type": "string", "format": "binary" }),
            Self::Files => {
                json!({ "type": "array", "items": { "type": "string", "format": "binary" } })
            }
            Self::Text => json!({ "type": "string", "description": "a JSON object" }),
        }
    }
}

/// Completes the description of the routes; `prefix` stands before those of the protocol.
pub fn complete(mut api: Value, prefix: &str) -> Value {
    if let Some(paths) = api["paths"].as_object_mut() {
        for (path, methods) in paths {
            let path = path.strip_prefix(prefix).unwrap_or(path).to_owned();
            for (method, operation) in methods.as_object_mut().into_iter().flatten() {
                body(operation, &path, method);
                parameters(operation, &path);
                answers(operation, &path, method);
            }
        }
    }
    api["components"]["schemas"] = schemas();
    api
}

fn body(operation: &mut Value, path: &str, method: &str) {
    if let Some((.., fields)) = FORMS.iter().find(|form| (form.0, form.1) == (path, method)) {
        let properties: Map<String, Value> = fields
            .iter()
            .map(|(name, field, _)| ((*name).to_owned(), field.schema()))
            .collect();
        let required: Vec<&str> = fields
            .iter()
            .filter(|(.., required)| *required)
            .map(|(name, ..)| *name)
            .collect();
        operation["requestBody"] = json!({
            "required": !required.is_empty(),
            "content": { "multipart/form-data": { "schema": {
                "type": "object", "properties": properties, "required": required,
            } } },
        });
    } else if OBJECTS.contains(&(path, method)) {
        operation["requestBody"] = json!({
            "required": false, "content": { "application/json": { "schema": { "type": ["object", "null"] } } },
        });
    }
}

/// A parameter of the query is there or not; it is never null.
fn parameters(operation: &mut Value, path: &str) {
    let parameters = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        let kinds = parameter["schema"]["type"].as_array();
        let kind = kinds.and_then(|kinds| kinds.iter().find(|kind| *kind != "null"));
        if let Some(kind) = kind.cloned() {
            parameter["schema"]["type"] = kind;
        }
        let choices = CHOICES
            .iter()
            .find(|(of, name, _)| *of == path && parameter["name"] == *name);
        if let Some((.., values)) = choices {
            parameter["schema"]["enum"] = json!(values);
        }
    }
}

fn answers(operation: &mut Value, path: &str, method: &str) {
    let error =
        json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } });
    let Some(answers) = operation["responses"].as_object_mut() else {
        return;
    };
    for (status, answer) in answers.iter_mut() {
        // An answer to HEAD has no body, whatever its status.
        if method == "head" {
            continue;
        }
        answer["content"] = if status == "200" || path == "/readyz" {
            content(path, method)
        } else {
            error.clone()
        };
    }
    let mut refusal = json!({ "description": "refused or failed; code says why" });
    if method != "head" {
        refusal["content"] = error;
    }
    answers.insert("default".to_owned(), refusal);
}

fn content(path: &str, method: &str) -> Value {
    if let Some((.., kinds)) = FILES.iter().find(|file| (file.0, file.1) == (path, method)) {
        let kinds: Map<String, Value> = kinds
            .iter()
            .map(|kind| ((*kind).to_owned(), json!({})))
            .collect();
        return kinds.into();
    }
    let shape = SHAPES
        .iter()
        .find(|shape| (shape.0, shape.1) == (path, method));
    let schema = shape.map_or_else(
        || json!({}),
        |(.., name)| json!({ "$ref": format!("#/components/schemas/{name}") }),
    );
    json!({ "application/json": { "schema": schema } })
}

/// An object whose `keys` are all there, with their schemas.
fn object(keys: &[(&str, Value)]) -> Value {
    let names: Vec<&str> = keys.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> = keys
        .iter()
        .map(|(name, schema)| ((*name).to_owned(), schema.clone()))
        .collect();
    json!({ "type": "object", "properties": properties, "required": names })
}

fn schemas() -> Value {
    let text = || json!({ "type": "string" });
    let number = || json!({ "type": "integer" });
    let open = || json!({ "type": "object" });
    let texts = || json!({ "type": "array", "items": { "type": "string" } });
    let shape = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let counts = object(&[
        ("total", number()),
        ("completed", number()),
        ("label_tags", open()),
    ]);
    let mut task = object(&[
        ("id", text()),
        (
            "status",
            json!({ "enum": ["SUBMITTED", "RUNNING", "DONE", "ERROR", "STOPPED"] }),
        ),
        ("request", open()),
        ("start_ts", text()),
    ]);
    task["properties"]["details"] = texts();
    task["properties"]["end_ts"] = text();
    json!({
        "Error": object(&[
            ("detail", json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "object" } }] })),
            ("code", text()),
            ("request_id", text()),
        ]),
        "Info": object(&[
            ("name", text()), ("description", text()), ("version", text()), ("labels", texts()),
            ("models", open()), ("trainers", open()), ("strategies", open()), ("scoring", open()),
            ("train_stats", open()), ("datastore", counts),
        ]),
        "ImageId": object(&[("image", text())]),
        "LabelId": object(&[("image", text()), ("label", text())]),
        "Nothing": { "type": "null" },
        "Session": object(&[
            ("name", text()), ("path", text()), ("image", text()), ("meta", open()),
            ("create_ts", number()), ("last_access_ts", number()), ("expiry", number()),
        ]),
        "NewSession": object(&[("session_id", text()), ("session_info", shape("Session"))]),
        "Task": task,
        "Tasks": { "anyOf": [shape("Task"), { "type": "array", "items": shape("Task") }] },
        "Stopped": { "anyOf": [shape("Task"), { "type": "null" }] },
        "Live": object(&[("live", json!({ "type": "boolean" }))]),
        "Ready": object(&[("ready", json!({ "type": "boolean" })), ("missing", texts())]),
    })
}

//! The compiled interface holds exactly what the table of wire facts says, field by field.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

const TABLE: &str = include_str!("../wire-facts.tsv");

#[test]
fn the_descriptor_equals_the_table() {
    let table: BTreeSet<String> =
        TABLE.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect();
    let compiled = facts();
    let missing: Vec<_> = table.difference(&compiled).collect();
    let extra: Vec<_> = compiled.difference(&table).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nextra: {extra:#?}");
    assert!(table.len() > 600, "the table has been cut short: {} lines", table.len());
}

#[test]
fn there_are_forty_three_calls() {
    assert_eq!(facts().iter().filter(|fact| fact.starts_with("rpc\t")).count(), 43);
}

#[test]
fn secrets_do_not_show() {
    let auth = bowline_cri_proto::v1::AuthConfig { password: "hunter2".into(), ..Default::default() };
    assert!(!format!("{auth:?}").contains("hunter2"));
    let env = bowline_cri_proto::v1::KeyValue { key: "TOKEN".into(), value: b"hunter2".to_vec() };
    assert!(!format!("{env:?}").contains("hunter2"));
}

fn facts() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(bowline_cri_proto::DESCRIPTORS).unwrap();
    let mut facts = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package() == "runtime.v1") {
        facts.insert("package\truntime.v1".to_owned());
        for service in &file.service {
            for method in &service.method {
                let kind = if method.server_streaming() { "server-stream" } else { "unary" };
                let (input, output) = (short(method.input_type()), short(method.output_type()));
                facts.insert(format!(
                    "rpc\t{}\t{}\t{input}\t{output}\t{kind}",
                    service.name(),
                    method.name()
                ));
            }
        }
        file.enum_type.iter().for_each(|each| enumeration("", each, &mut facts));
        file.message_type.iter().for_each(|each| message(each, &mut facts));
    }
    facts
}

fn enumeration(prefix: &str, descriptor: &EnumDescriptorProto, facts: &mut BTreeSet<String>) {
    for value in &descriptor.value {
        facts.insert(format!("enum\t{prefix}{}\t{}\t{}", descriptor.name(), value.name(), value.number()));
    }
}

fn message(descriptor: &DescriptorProto, facts: &mut BTreeSet<String>) {
    let name = descriptor.name();
    if descriptor.field.is_empty() {
        facts.insert(format!("message\t{name}\t(no fields)"));
    }
    for inner in &descriptor.enum_type {
        enumeration(&format!("{name}."), inner, facts);
    }
    for field in &descriptor.field {
        let (kind, label) = shape(field, descriptor);
        let options = options(name, field);
        facts.insert(format!(
            "field\t{name}\t{}\t{}\t{kind}\t{label}\t{options}",
            field.number(),
            field.name()
        ));
    }
}

fn shape(field: &FieldDescriptorProto, parent: &DescriptorProto) -> (String, &'static str) {
    if let Some(entry) =
        parent.nested_type.iter().find(|nested| field.type_name().ends_with(&format!(".{}", nested.name())))
        && entry.options.as_ref().is_some_and(|options| options.map_entry())
    {
        let part = |number| scalar(entry.field.iter().find(|part| part.number() == number).unwrap());
        return (format!("map<{},{}>", part(1), part(2)), "-");
    }
    let label = if field.label() == Label::Repeated { "repeated" } else { "-" };
    (scalar(field), label)
}

fn scalar(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn options(message: &str, field: &FieldDescriptorProto) -> &'static str {
    match &field.options {
        _ if redacted(message, field.number()) => "debug_redact",
        Some(options) if options.deprecated() => "deprecated",
        _ => "-",
    }
}

fn short(name: &str) -> String {
    name.trim_start_matches(".runtime.v1.").to_owned()
}

/// `debug_redact` (field 16 of FieldOptions), which `prost-types` does not know yet.
fn redacted(message: &str, number: i32) -> bool {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Set {
        #[prost(message, repeated, tag = "1")]
        file: Vec<File>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct File {
        #[prost(message, repeated, tag = "4")]
        message: Vec<Message>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Message {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(message, repeated, tag = "2")]
        field: Vec<Field>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Field {
        #[prost(int32, tag = "3")]
        number: i32,
        #[prost(message, optional, tag = "8")]
        options: Option<Options>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Options {
        #[prost(bool, tag = "16")]
        debug_redact: bool,
    }
    let set = Set::decode(bowline_cri_proto::DESCRIPTORS).unwrap();
    let mut fields = set.file.iter().flat_map(|file| &file.message).filter(|each| each.name == message);
    let field = fields.next().and_then(|each| each.field.iter().find(|field| field.number == number));
    field.and_then(|field| field.options.as_ref()).is_some_and(|options| options.debug_redact)
}

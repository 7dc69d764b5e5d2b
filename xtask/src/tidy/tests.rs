use super::*;

fn places(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.place.as_str()).collect()
}

#[test]
fn long_files_are_found() {
    let text = format!("//! Head.\n{}", "\n".repeat(LINES_MAX));
    let findings = check_text("crates/types/src/time.rs", &text);
    assert_eq!(places(&findings), ["crates/types/src/time.rs"]);
    assert!(findings[0].message.contains("701 lines"), "{findings:?}");
    assert_eq!(check_text("CHANGELOG.md", &text), []);
}

#[test]
fn heads_and_unfinished_work_are_found() {
    let text = format!("use std::fmt;\n// {}: more\n", concat!("TO", "DO"));
    let findings = check_text("crates/types/src/time.rs", &text);
    assert_eq!(places(&findings), ["crates/types/src/time.rs", "crates/types/src/time.rs:2"]);
    assert_eq!(
        places(&check_text("crates/types/src/time/tests.rs", &text)),
        ["crates/types/src/time/tests.rs:2"]
    );
}

#[test]
fn engines_are_named_in_one_place() {
    let line = "//! Head.\nuse catchment_eventlog::embedded::EmbeddedLog;\n";
    assert_eq!(places(&check_text("crates/gateway/src/lib.rs", line)), ["crates/gateway/src/lib.rs:2"]);
    assert_eq!(check_text("crates/catchment/src/engines.rs", line), []);
    let in_test = "//! Head.\n#[cfg(test)]\nmod tests { use catchment_eventlog::embedded::EmbeddedLog; }\n";
    assert_eq!(check_text("crates/gateway/src/lib.rs", in_test), []);
}

#[test]
fn documents_name_what_exists() {
    let text = "See `crates/types/src/time.rs:12`, `crates/gone/`, [this](docs/a.md#part), [that](../b.md), `a/b`,\n\
                [web](https://example.org/x).\n```\n`crates/in-a-block`\n```\n";
    let there = ["crates/types/src/time.rs", "docs/docs/a.md"];
    let findings = missing_paths("docs/README.md", text, |path| there.contains(&path));
    let messages: Vec<_> = findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(messages, ["names crates/gone, which does not exist", "names b.md, which does not exist"]);
    assert_eq!(places(&findings), ["docs/README.md:1", "docs/README.md:1"]);
}

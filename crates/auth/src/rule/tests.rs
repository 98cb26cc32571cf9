//! Who may call what, as a table.

use faena_domain::Namespace;

use super::*;
use crate::decision::Forbidden;
use crate::principal::{AccountId, AccountKind};

/// A rule from the words of one line: scope, kind, name, endpoint, access, priority.
fn rule(text: &str) -> Rule {
    let [scope, kind, name, endpoint, access, priority] = text.split(' ').collect::<Vec<_>>()[..] else {
        panic!("six words: {text}")
    };
    let pattern = |text: &str| Pattern::try_from(text.to_owned()).unwrap();
    Rule {
        id: format!("r{}", text.len()).parse().unwrap(),
        scope: RuleScope::try_from(scope.trim_matches('"').to_owned()).unwrap(),
        resource: RuleResource { kind: pattern(kind), name: pattern(name), endpoint: pattern(endpoint) },
        access: if access == "GRANTED" { Access::Granted } else { Access::Denied },
        priority: priority.parse().unwrap(),
    }
}

fn principal(who: &str) -> Principal {
    let (namespace, scopes) = who.split_once(':').unwrap();
    let here: Namespace = "here".parse().unwrap();
    if namespace.is_empty() {
        return Principal::anonymous(here);
    }
    let names: Vec<&str> = scopes.split(',').filter(|name| !name.is_empty()).collect();
    Principal {
        namespace: here,
        home: Some(namespace.parse().unwrap()),
        account: Account::Named { id: AccountId("1".into()), name: "ann".into(), kind: AccountKind::User },
        scopes: Scopes::parse(&names).unwrap(),
    }
}

fn calls(who: &str, rules: &[&str], name: &str, endpoint: &str) -> bool {
    let rules = RuleSet::new(rules.iter().map(|text| rule(text)).collect());
    let target = Target { kind: "function", name, endpoint };
    principal(who).may(Requirement::Call, &target, &rules).is_ok()
}

const DEFAULT: &str = "* * * * GRANTED 0";

#[test]
fn the_first_rule_that_applies_decides() {
    let table: &[(&str, &[&str], &str, bool)] = &[
        // Without rules nothing is granted.
        ("here:invoke", &[], "/", false),
        ("here:admin", &[], "/", false),
        // The rule that every namespace begins with.
        ("here:invoke", &[DEFAULT], "/", true),
        ("here:admin", &[DEFAULT], "/", true),
        ("here:read", &[DEFAULT], "/", false),
        ("here:robots", &[DEFAULT], "/", false),
        ("there:invoke", &[DEFAULT], "/", false),
        (":", &[DEFAULT], "/", false),
        // Public.
        (":", &["\"\" function dice * GRANTED 0"], "/", true),
        (":", &["\"\" function other * GRANTED 0"], "/", false),
        (":", &["\"\" runtime dice * GRANTED 0"], "/", false),
        ("there:", &["\"\" function dice * GRANTED 0"], "/", true),
        ("here:", &["\"\" function dice * GRANTED 0"], "/", true),
        // Any account of any namespace.
        ("there:invoke", &["+ function dice * GRANTED 0"], "/", true),
        ("there:read", &["+ function dice * GRANTED 0"], "/", false),
        (":", &["+ function dice * GRANTED 0"], "/", false),
        // Named scopes grant calling by themselves, at home alone.
        ("here:robots", &["robots function dice * GRANTED 0"], "/", true),
        ("here:ROBOTS", &["Robots FUNCTION DICE * GRANTED 0"], "/", true),
        ("here:others", &["robots function dice * GRANTED 0"], "/", false),
        ("there:robots", &["robots function dice * GRANTED 0"], "/", false),
        ("here:robots", &[DEFAULT, "robots function dice * GRANTED 0"], "/", true),
        ("here:robots", &["* * * * GRANTED 5", "robots function dice * GRANTED 0"], "/", true),
        ("here:deploy", &["read function dice * GRANTED 0"], "/", true),
        // Priority, and DENIED before GRANTED at the same.
        (":", &["\"\" * * * GRANTED 1", "\"\" * * * DENIED 1"], "/", false),
        (":", &["\"\" * * * GRANTED 2", "\"\" * * * DENIED 1"], "/", true),
        (":", &["\"\" * * * GRANTED 1", "\"\" * * * DENIED 2"], "/", false),
        ("here:invoke", &[DEFAULT, "* function dice * DENIED 0"], "/", false),
        ("here:invoke", &[DEFAULT, "* function dice * DENIED -1"], "/", true),
        ("here:robots,invoke", &[DEFAULT, "robots * * * DENIED 1"], "/", false),
        ("here:invoke", &[DEFAULT, "robots * * * DENIED 1"], "/", true),
        // What is denied to everyone is denied to accounts too.
        ("here:admin", &[DEFAULT, "\"\" function dice * DENIED 1"], "/", false),
        // Endpoints.
        (":", &["\"\" function dice /open/* GRANTED 0"], "/open/a", true),
        (":", &["\"\" function dice /open/* GRANTED 0"], "/OPEN/a", true),
        (":", &["\"\" function dice /open/* GRANTED 0"], "/open/", true),
        (":", &["\"\" function dice /open/* GRANTED 0"], "/open", false),
        (":", &["\"\" function dice /open/* GRANTED 0"], "/opener/a", false),
        (":", &["\"\" function dice /hook GRANTED 0"], "/hook", true),
        (":", &["\"\" function dice /hook GRANTED 0"], "/hook/a", false),
        (":", &["\"\" function dice * GRANTED 0", "\"\" function dice /admin/* DENIED 1"], "/admin/x", false),
        (":", &["\"\" function dice * GRANTED 0", "\"\" function dice /admin/* DENIED 1"], "/x", true),
    ];
    for (who, rules, endpoint, expected) in table {
        assert_eq!(calls(who, rules, "dice", endpoint), *expected, "{who} {rules:?} {endpoint}");
    }
}

#[test]
fn no_rule_gives_a_scope_that_is_not_about_calling() {
    let rules = RuleSet::new(vec![rule("robots * * * GRANTED 9"), rule("\"\" * * * GRANTED 9")]);
    let target = Target { kind: "runtime", name: "x", endpoint: "/runtime/x" };
    let may = |who: &str| principal(who).may(Requirement::Scope(Scope::Deploy), &target, &rules);
    assert!(may("here:robots").is_err());
    assert_eq!(may("here:deploy"), Ok(()));
    assert_eq!(may(":"), Err(Forbidden::Unauthenticated));
    assert!(may("there:deploy").is_err());
}

#[test]
fn rules_judge_operations_too() {
    let rules = RuleSet::new(vec![rule(DEFAULT), rule("* runtime x * DENIED 1")]);
    let target = |name| Target { kind: "runtime", name, endpoint: "/runtime" };
    let may = |name| principal("here:deploy").may(Requirement::Scope(Scope::Deploy), &target(name), &rules);
    assert!(may("x").is_err() && may("X").is_err());
    assert_eq!(may("y"), Ok(()));
}

#[test]
fn functions_are_no_accounts() {
    let rules = RuleSet::new(vec![rule("+ * * * DENIED 9"), rule("* * * * DENIED 9")]);
    let function = Principal::function("here".parse().unwrap(), "caller".parse().unwrap(), Scopes::NONE);
    let target = Target { kind: "function", name: "dice", endpoint: "/" };
    assert_eq!(function.may(Requirement::Call, &target, &rules), Ok(()));
    assert!(function.may(Requirement::Scope(Scope::Read), &target, &rules).is_err());
}

#[test]
fn only_three_kinds_of_patterns_exist() {
    for (text, name, expected) in [
        ("*", "anything", true),
        ("Dice", "dICE", true),
        ("dice", "dices", false),
        ("/a/*", "/a/b/c", true),
        ("", "", true),
        ("", "x", false),
    ] {
        assert_eq!(Pattern::try_from(text.to_owned()).unwrap().matches(name), expected, "{text} {name}");
    }
    for wrong in ["a*", "*a", "/*/a", "/a/**", "a\nb", &"x".repeat(1025)] {
        assert!(Pattern::try_from(wrong.to_owned()).is_err(), "{wrong}");
    }
}

#[test]
fn a_rule_is_written_as_it_is_read() {
    let text = r#"{"id":"open","scope":"","resource":{"type":"function","name":"hook","endpoint":"/a/*"},"access":"GRANTED","priority":1}"#;
    let read: Rule = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    let set = RuleSet::new(vec![read.clone()]);
    assert!(set.judges_paths_of("HOOK") && !set.judges_paths_of("other"));
    assert_eq!(set.without(&read.id), RuleSet::default());
    assert_eq!(set.with(read.clone()), set);
}

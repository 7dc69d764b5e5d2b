//! Statements and what they are.

use super::*;

fn command(text: &str) -> Result<Command, PgError> {
    let pieces = split(text).unwrap();
    assert_eq!(pieces.len(), 1, "{text}");
    pieces[0].command()
}

fn set(name: &str, value: Option<&str>, local: bool) -> Command {
    Command::Set { name: name.to_owned(), value: value.map(str::to_owned), local }
}

#[test]
fn texts_are_cut_at_semicolons_outside_of_quotes_and_comments() {
    let pieces = split(" ;; select ';' -- ;\n , $$;$$ ; /* ; */ selécté \"a;b\";").unwrap();
    let texts: Vec<_> = pieces.iter().map(|piece| (piece.text, piece.chars_before)).collect();
    assert_eq!(texts, [("select ';' -- ;\n , $$;$$", 4), ("selécté \"a;b\"", 39)]);
    assert!(split(" ; -- nothing").unwrap().is_empty());
}

#[test]
fn an_open_quote_has_a_place() {
    let error = split("select 'abc").unwrap_err();
    assert_eq!(error.code(), "42601");
}

#[test]
fn transactions() {
    for (text, expected) in [
        ("begin", Command::Begin),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE", Command::Begin),
        ("start transaction read only", Command::Begin),
        ("COMMIT", Command::Commit),
        ("end", Command::Commit),
        ("rollback", Command::Rollback),
        ("ABORT", Command::Rollback),
        ("SAVEPOINT \"_Pg3_1\"", Command::Savepoint("_Pg3_1".to_owned())),
        ("ROLLBACK TO SAVEPOINT Sp", Command::RollbackTo("sp".to_owned())),
        ("ROLLBACK TO sp", Command::RollbackTo("sp".to_owned())),
        ("release savepoint sp", Command::Release("sp".to_owned())),
    ] {
        assert_eq!(command(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn variables() {
    for (text, expected) in [
        ("SET statement_timeout = 5000", set("statement_timeout", Some("5000"), false)),
        ("set local Statement_Timeout to '5s'", set("statement_timeout", Some("5s"), true)),
        ("SET SESSION datestyle TO ISO, MDY", set("datestyle", Some("ISO, MDY"), false)),
        ("SET TIME ZONE 'UTC'", set("TimeZone", Some("UTC"), false)),
        ("SET TIME ZONE -3", set("TimeZone", Some("-3"), false)),
        ("SET timezone = UTC", set("timezone", Some("UTC"), false)),
        ("SET NAMES 'utf8'", set("client_encoding", Some("utf8"), false)),
        ("SET client_encoding TO 'UTF8'", set("client_encoding", Some("UTF8"), false)),
        ("SET search_path TO DEFAULT", set("search_path", None, false)),
        ("SET my.own = off", set("my.own", Some("off"), false)),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
            Command::Nothing("SET"),
        ),
        ("SHOW TIME ZONE", Command::Show("TimeZone".to_owned())),
        ("show transaction isolation level", Command::Show("transaction_isolation".to_owned())),
        ("SHOW ALL", Command::ShowAll),
        ("RESET ALL", Command::ResetAll),
        ("RESET statement_timeout", Command::Reset("statement_timeout".to_owned())),
        ("DISCARD ALL", Command::DiscardAll),
        ("DEALLOCATE ALL", Command::Deallocate(None)),
        ("DEALLOCATE PREPARE \"S_1\"", Command::Deallocate(Some("S_1".to_owned()))),
        ("UNLISTEN *", Command::Nothing("UNLISTEN")),
    ] {
        assert_eq!(command(text).unwrap(), expected, "{text}");
    }
}

#[test]
fn cursors() {
    let text = "DECLARE \"cur\" NO SCROLL CURSOR WITH HOLD FOR SELECT 1";
    let Command::Declare(declare) = command(text).unwrap() else { panic!() };
    assert_eq!((declare.name.as_str(), declare.hold, declare.binary), ("cur", true, false));
    assert_eq!(&text[declare.query_at..], "SELECT 1");
    for (text, count, skip) in [
        ("FETCH c", Some(1), false),
        ("FETCH NEXT FROM c", Some(1), false),
        ("FETCH 5 IN c", Some(5), false),
        ("FETCH FORWARD 100 FROM c", Some(100), false),
        ("FETCH FORWARD ALL FROM \"c\"", None, false),
        ("MOVE ALL FROM c", None, true),
    ] {
        assert_eq!(
            command(text).unwrap(),
            Command::Fetch(Fetch { cursor: "c".to_owned(), count, skip }),
            "{text}"
        );
    }
    assert_eq!(command("FETCH BACKWARD 1 FROM c").unwrap_err().code(), "55000");
    assert_eq!(command("FETCH -1 FROM c").unwrap_err().code(), "55000");
    assert_eq!(command("CLOSE ALL").unwrap(), Command::CloseCursor(None));
}

#[test]
fn copies_go_to_the_client_only() {
    let Command::CopyOut(copy) =
        command("COPY (SELECT (1), ')') TO STDOUT (FORMAT csv, HEADER true, DELIMITER ';')").unwrap()
    else {
        panic!()
    };
    assert_eq!(
        copy,
        CopyOut {
            query: "SELECT (1), ')'".to_owned(),
            csv: true,
            header: true,
            delimiter: b';',
            null: String::new()
        }
    );
    let Command::CopyOut(copy) = command("copy main.\"T\" (a, b) to stdout with csv header").unwrap() else {
        panic!()
    };
    assert_eq!((copy.query.as_str(), copy.csv, copy.header), ("SELECT a, b FROM main.\"T\"", true, true));
    for text in
        ["COPY t FROM STDIN", "COPY t TO '/tmp/x'", "COPY (SELECT 1) TO PROGRAM 'x'", "COPY t (a) FROM '/x'"]
    {
        assert_eq!(command(text).unwrap_err().code(), "25006", "{text}");
    }
}

#[test]
fn what_writes_is_refused_by_name() {
    for text in [
        "create external table t stored as csv location '/x'",
        "Insert into t values (1)",
        "VACUUM FULL",
        "drop table t",
    ] {
        assert_eq!(command(text).unwrap_err().code(), "25006", "{text}");
    }
}

#[test]
fn all_else_is_a_question() {
    for text in [
        "SELECT 1",
        "(select 1) union select 2",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "VALUES (1)",
        "EXPLAIN SELECT 1",
        "blah",
    ] {
        assert_eq!(command(text).unwrap(), Command::Query, "{text}");
    }
}

#[test]
fn mistakes_have_a_place() {
    let PgError { .. } = command("FETCH FORWARD").unwrap_err();
    assert_eq!(command("FETCH 1 FROM").unwrap_err().code(), "42601");
}

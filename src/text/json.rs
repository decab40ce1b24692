//! The `tojson` filter as transformers defines it: Python's `json.dumps` without escaping of non-ASCII characters.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Values nested deeper than this are refused.
const DEPTH: usize = 64;

/// `value` as JSON, with `indent=` spaces a level if given.
pub(crate) fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent = options.get::<Option<usize>>("indent")?.map(|indent| indent.min(16));
    let mut out = String::new();
    write(value, indent, 0, &mut out)?;
    // `ensure_ascii`, `separators` and `sort_keys` are accepted where they ask for the default.
    Ok(Value::from_safe_string(out))
}

fn write(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "the value is nested too deeply for JSON"));
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            list(('[', ']'), &items, indent, depth, out, |item, out| write(item, indent, depth + 1, out))?;
        }
        ValueKind::Map => {
            let keys: Vec<Value> = value.try_iter()?.collect();
            list(('{', '}'), &keys, indent, depth, out, |key, out| {
                string(&key.to_string(), out);
                out.push_str(": ");
                write(&value.get_item(key)?, indent, depth + 1, out)
            })?;
        }
        _ => string(&value.to_string(), out),
    }
    Ok(())
}

fn list(
    brackets: (char, char),
    items: &[Value],
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
    mut each: impl FnMut(&Value, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    out.push(brackets.0);
    for (index, item) in items.iter().enumerate() {
        out.push_str(match (index, indent) {
            (0, _) => "",
            (_, None) => ", ",
            (_, Some(_)) => ",",
        });
        break_line(indent, depth + 1, out);
        each(item, out)?;
    }
    if !items.is_empty() {
        break_line(indent, depth, out);
    }
    out.push(brackets.1);
    Ok(())
}

fn break_line(indent: Option<usize>, depth: usize, out: &mut String) {
    if let Some(indent) = indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

fn string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    #[test]
    fn json_is_written_as_python_writes_it() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", super::to_json);
        let render =
            |source: &str| environment.render_str(source, context! { s => "é\"\\\n\u{1}<" }).unwrap();
        assert_eq!(
            render("{{ [1, 2.5, true, none, s, [], {}] | tojson }}"),
            "[1, 2.5, true, null, \"é\\\"\\\\\\n\\u0001<\", [], {}]"
        );
        assert_eq!(render("{{ {'a': [1, 2]} | tojson(indent=2) }}"), "{\n  \"a\": [\n    1,\n    2\n  ]\n}");
    }
}

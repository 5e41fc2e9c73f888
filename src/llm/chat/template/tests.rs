//! Templates rendered here and by `transformers` (5.23, `render_jinja_template`) are the same text: the wanted texts below
//! were written by it.

use super::*;
use serde_json::json;
use std::io::Read;

/// Our own, with the constructs that reasoning models' templates use.
const REASONING: &str = include_str!("../../../../tests/fixtures/chat/reasoning.jinja");

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

fn reasoning() -> ChatTemplate {
    let tokens = ["<|bos|>", "<|eos|>"].map(|token| Some(token.to_string()));
    let [bos_token, eos_token] = tokens;
    ChatTemplate::compile(REASONING.to_string(), bos_token, eos_token).expect("compiles")
}

fn variables(value: Value) -> Map<String, Value> {
    value.as_object().cloned().expect("object")
}

#[test]
fn a_reasoning_template_is_rendered_as_transformers_does() {
    let template = reasoning();
    let plain = Map::new();
    let one = template.render(&[message("user", "hi")], &plain).expect("renders");
    assert_eq!(one, "<|bos|><|User|>hi<|Assistant|><think>\n");
    let history = [
        message("system", "be\nbrief"),
        message("system", "b"),
        message("user", "hi"),
        message("assistant", "<think>\nx</think>\n\nhello "),
        message("user", "ü<&'"),
    ];
    let wanted = "<|bos|>be\nbrief\n\nb<|User|>hi<|Assistant|>hello<|eos|><|User|>ü<&'<|Assistant|><think>\n";
    assert_eq!(template.render(&history, &plain).expect("renders"), wanted);
    let switches = variables(json!({"thinking": false, "show": {"a": [1, "<é'>"], "b": null}}));
    let wanted = "<|bos|><|User|>hi<|Assistant|><think></think>{\"a\": [1, \"<é'>\"], \"b\": null}";
    assert_eq!(template.render(&[message("user", "hi")], &switches).expect("renders"), wanted);
}

#[test]
fn what_a_template_raises_is_the_message() {
    let error = reasoning().render(&vec![message("user", "x"); 10], &Map::new()).expect_err("raised");
    assert!(error.starts_with("too many turns: 9 (line "), "{error}");
}

/// The tokenizer's settings of a published model, where this machine has them.
fn qwen3() -> Option<Value> {
    let path = testkit::data_folder().join("tokenizers/qwen3/tokenizer_config.json.gz");
    let Ok(file) = std::fs::File::open(&path) else {
        testkit::skip(&format!("{} is not there; TAIJI_DATA_DIR names the folder", path.display()));
        return None;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    Some(serde_json::from_str(&text).expect("json"))
}

#[test]
fn the_template_of_qwen3_is_rendered_as_transformers_does() {
    let Some(config) = qwen3() else { return };
    let folder = tempfile::tempdir().expect("tempdir");
    std::fs::write(folder.path().join(CONFIG_FILE), config.to_string()).expect("write");
    let template = ChatTemplate::load(folder.path(), "").expect("loads").expect("has a template");
    assert_eq!(template.eos_token().map(String::as_str), Some("<|im_end|>"));
    let (user, assistant) = (|text| message("user", text), |text| message("assistant", text));
    for (messages, switches, wanted) in [
        (vec![user("hi")], json!({}), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        (
            vec![message("system", "be brief"), user("hi")],
            json!({"enable_thinking": false}),
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n\
             </think>\n\n",
        ),
        (
            vec![message("system", "s"), user("1"), assistant("<think>\n\nwhy\n</think>\n\nans\n"), user("2")],
            json!({}),
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\nans\n<|im_end|>\n\
             <|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            vec![user("1"), assistant("<think>\nwhy\n</think>\n\nans")],
            json!({}),
            "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n<think>\nwhy\n</think>\n\nans<|im_end|>\n\
             <|im_start|>assistant\n",
        ),
        (
            vec![user("<tool_response>x</tool_response>"), user("2"), assistant("plain")],
            json!({"enable_thinking": true}),
            "<|im_start|>user\n<tool_response>x</tool_response><|im_end|>\n<|im_start|>user\n2<|im_end|>\n\
             <|im_start|>assistant\n<think>\n\n</think>\n\nplain<|im_end|>\n<|im_start|>assistant\n",
        ),
    ] {
        assert_eq!(template.render(&messages, &variables(switches)).expect("renders"), wanted);
    }
}

#[test]
fn the_file_beside_the_model_wins_over_its_settings_and_ours_wins_over_both() {
    let folder = tempfile::tempdir().expect("tempdir");
    let load = |setting: &str| ChatTemplate::load(folder.path(), setting).expect("loads");
    let render = |setting: &str| load(setting).expect("has one").render(&[message("user", "m")], &Map::new());
    assert!(load("").is_none());
    assert_eq!(render("plain").expect("plain"), "user: m\nassistant:");

    let several = json!({
        "eos_token": {"content": "<end>"},
        "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d{{ eos_token }}"}],
    });
    std::fs::write(folder.path().join(CONFIG_FILE), several.to_string()).expect("write");
    assert_eq!(render("").expect("settings"), "d<end>");
    std::fs::write(folder.path().join(OWN_FILE), "{{ messages[0].content }}{{ bos_token }}").expect("write");
    assert_eq!(render("").expect("file"), "m");
    let ours = folder.path().join("ours.jinja");
    std::fs::write(&ours, "ours").expect("write");
    assert_eq!(render(&ours.display().to_string()).expect("ours"), "ours");
}

#[test]
fn a_template_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().expect("tempdir");
    let refused = |setting: &str| ChatTemplate::load(folder.path(), setting).expect_err("refused").to_string();
    assert!(refused("/nowhere/x.jinja").starts_with("/nowhere/x.jinja: "));
    std::fs::write(folder.path().join(OWN_FILE), "{% if %}").expect("write");
    let error = refused("");
    assert!(error.contains(OWN_FILE) && error.contains("line 1"), "{error}");
    std::fs::write(folder.path().join(CONFIG_FILE), "{").expect("write");
    assert!(refused("plain").contains(CONFIG_FILE));
}

#[test]
fn templates_may_ask_for_the_date() {
    let compile = |source: &str| ChatTemplate::compile(source.to_string(), None, None).expect("compiles");
    let year = compile("{{ strftime_now('%Y') }}").render(&[], &Map::new()).expect("renders");
    assert!(year.parse::<u32>().expect("a year") >= 2024);
    assert!(compile("{{ strftime_now('%Q') }}").render(&[], &Map::new()).is_err());
}

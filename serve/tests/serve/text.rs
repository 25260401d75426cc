//! Texts over HTTP: OpenAI's completions and Triton's generate say what the model says, and refuse what is wrong.

use crate::client::{Answer, Client};
use crate::models::{mlp, put, writer};
use crate::up::Up;
use elastic_bundle::{Model, Predictor, class_of, likelihood};
use elastic_serve::{Config, Keys};
use serde_json::{Value, json};
use std::path::Path;

pub const CONTEXT: usize = 96;
pub const PATH: &str = "/v1/completions";

/// `text`, which continues bytes, and `digits`, which continues nothing.
fn registry(dir: &Path) -> Up {
    put(&dir.join("text/1"), &writer(CONTEXT, 0));
    put(&dir.join("digits/1"), &mlp(0));
    Up::new(dir)
}

/// What the whole forward pass says, always its likeliest token.
fn greedy(model: &Model, prompt: &[u8], count: usize) -> Vec<i32> {
    let mut predictor = Predictor::new(model, 1).unwrap();
    let mut tokens: Vec<i32> = prompt.iter().map(|byte| i32::from(*byte)).collect();
    for _ in 0..count {
        let logits = predictor.sequence_logits(&tokens);
        tokens.push(class_of(&logits[logits.len() - 256..]) as i32);
    }
    tokens.split_off(prompt.len())
}

fn shown(tokens: &[i32]) -> String {
    let bytes: Vec<u8> = tokens.iter().map(|token| *token as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn complete(client: &mut Client, ask: Value) -> Value {
    let answer = client.post(PATH, &ask.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The objects of a stream; the last event must be what OpenAI ends streams with.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let text = answer.text();
    let events = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").expect("an event"));
    let mut events: Vec<&str> = events.collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[test]
fn a_greedy_text_is_that_of_the_whole_forward_pass_plain_and_streamed() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let mut client = up.client();
    let expected = greedy(&writer(CONTEXT, 0), b"Once upon", 40);
    let ask = json!({ "model": "text", "prompt": "Once upon", "temperature": 0, "max_tokens": 40 });
    let whole = complete(&mut client, ask.clone());
    assert_eq!(whole["choices"][0]["text"], shown(&expected));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"], json!({ "prompt_tokens": 9, "completion_tokens": 40, "total_tokens": 49 }));
    assert_eq!((&whole["object"], &whole["model"]), (&json!("text_completion"), &json!("text")));
    assert!(whole["id"].as_str().unwrap().starts_with("cmpl-") && whole["created"].as_u64() > Some(1_600_000_000));
    let mut streamed = ask.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let mut events = events(&client.post(PATH, &streamed.to_string()));
    let usage = events.pop().unwrap();
    assert_eq!((&usage["usage"], &usage["choices"]), (&whole["usage"], &json!([])));
    assert!(events.len() > 5, "it comes in pieces");
    let text: String = events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, shown(&expected));
    let finishes: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
    assert!(
        finishes[..finishes.len() - 1].iter().all(|finish| finish.is_null())
            && *finishes[finishes.len() - 1] == "length"
    );
    assert!(events.iter().all(|event| event["id"] == events[0]["id"] && event["usage"].is_null()));
    // The same by tokens, to the end of the context, and up to a stop.
    let tokens: Vec<u8> = b"Once upon".to_vec();
    let by_tokens =
        complete(&mut client, json!({ "model": "text:1", "prompt": tokens, "temperature": 0, "max_tokens": 40 }));
    assert_eq!(by_tokens["choices"], whole["choices"]);
    let long =
        complete(&mut client, json!({ "model": "text", "prompt": "Once upon", "temperature": 0, "max_tokens": 4000 }));
    assert_eq!(long["usage"]["completion_tokens"], CONTEXT - 9 + 1);
    let stop = text.chars().find(|c| *c != '\u{fffd}').expect("something is a character").to_string();
    let mut stopped = ask;
    stopped["stop"] = json!(["nowhere to be found", stop]);
    let stopped = complete(&mut client, stopped);
    assert_eq!(stopped["choices"][0]["text"], text[..text.find(&stop).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[test]
fn a_seeds_texts_are_the_same_alone_and_among_others() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let ask = json!({
        "model": "text", "prompt": ["So it was", "And"], "n": 2, "seed": 11, "temperature": 0.9, "top_p": 0.95,
        "max_tokens": 60, "logprobs": 2, "frequency_penalty": 0.3,
    });
    let alone = complete(&mut up.client(), ask.clone())["choices"].clone();
    let texts: Vec<&str> = alone.as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert!(texts.len() == 4 && texts[0] != texts[1] && texts[2] != texts[3]);
    std::thread::scope(|scope| {
        for other in 0..5 {
            let up = &up;
            scope.spawn(move || {
                let prompt = "x".repeat(1 + other * 9);
                let ask = json!({ "model": "text", "prompt": prompt, "n": 3, "seed": other, "max_tokens": 50 });
                let first = complete(&mut up.client(), ask.clone());
                assert_eq!(complete(&mut up.client(), ask)["choices"], first["choices"]);
            });
        }
        for _ in 0..3 {
            assert_eq!(complete(&mut up.client(), ask.clone())["choices"], alone);
        }
    });
    // A prompt among others has the texts that it has by itself, and another seed others.
    let mut second = ask.clone();
    second["prompt"] = json!("And");
    let second = complete(&mut up.client(), second);
    assert_eq!(second["choices"][1]["text"], alone[3]["text"]);
    assert_eq!(second["choices"][1]["logprobs"], alone[3]["logprobs"]);
    let mut other = ask;
    other["seed"] = json!(12);
    assert_ne!(complete(&mut up.client(), other)["choices"], alone);
}

#[test]
fn an_echo_with_logprobs_tells_how_likely_each_token_of_the_prompt_is() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let prompt = "as likely as not";
    let ask = |max_tokens: usize| json!({ "model": "text", "prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": max_tokens, "temperature": 0 });
    let told = complete(&mut up.client(), ask(0));
    let choice = &told["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(prompt), &json!("length")));
    assert_eq!(told["usage"]["completion_tokens"], 0);
    let tokens: Vec<i32> = prompt.bytes().map(i32::from).collect();
    let logits = Predictor::new(&writer(CONTEXT, 0), 1).unwrap().sequence_logits(&tokens);
    let rows = logits.chunks_exact(256);
    let own: Vec<Value> = rows.zip(&tokens[1..]).map(|(row, t)| json!(likelihood(row, *t as usize, 1).own)).collect();
    let logs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert!(logs[0].is_null() && logs[1..] == own);
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), tokens.len());
    // What is generated stands behind it, and a stream has the same in pieces.
    let more = complete(&mut up.client(), ask(7));
    let more = &more["choices"][0];
    assert_eq!(more["logprobs"]["token_logprobs"].as_array().unwrap()[..tokens.len()], logs[..]);
    assert_eq!(more["logprobs"]["tokens"].as_array().unwrap().len(), tokens.len() + 7);
    let mut streamed = ask(7);
    streamed["stream"] = json!(true);
    let events = events(&up.client().post(PATH, &streamed.to_string()));
    let of = |key: &str| -> Vec<Value> {
        let lists = events.iter().map(|event| event["choices"][0]["logprobs"][key].as_array().unwrap().clone());
        lists.flatten().collect()
    };
    assert_eq!(json!(of("token_logprobs")), more["logprobs"]["token_logprobs"]);
    assert_eq!(json!(of("text_offset")), more["logprobs"]["text_offset"]);
    let plain = json!({ "model": "text", "prompt": prompt, "echo": true, "max_tokens": 7, "temperature": 0 });
    assert_eq!(complete(&mut up.client(), plain)["choices"][0]["text"], more["text"]);
}

#[test]
fn an_echo_that_ends_within_a_character_goes_on_within_it() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let prompt = [65, 0xf0, 0x9f];
    for (max_tokens, logprobs) in [(0, Value::Null), (0, json!(0)), (12, Value::Null), (12, json!(1))] {
        let mut ask = json!({
            "model": "text", "prompt": prompt, "echo": true, "max_tokens": max_tokens, "temperature": 0,
            "logprobs": logprobs,
        });
        let whole = complete(&mut up.client(), ask.clone())["choices"][0].clone();
        let said = greedy_after(&prompt, max_tokens);
        assert_eq!(whole["text"], shown(&[&prompt[..], &said].concat()), "one text, however it came to be");
        ask["stream"] = json!(true);
        let pieces = events(&up.client().post(PATH, &ask.to_string()));
        let text: String = pieces.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(whole["text"], text);
    }
    let ask = json!({ "model": "text", "prompt": [128, 65, 226], "echo": true, "logprobs": 0, "max_tokens": 0 });
    let offsets = complete(&mut up.client(), ask)["choices"][0]["logprobs"]["text_offset"].clone();
    assert_eq!(offsets, json!([0, 1, 2]));
}

fn greedy_after(prompt: &[i32], count: usize) -> Vec<i32> {
    let prompt: Vec<u8> = prompt.iter().map(|token| *token as u8).collect();
    greedy(&writer(CONTEXT, 0), &prompt, count)
}

#[test]
fn what_is_not_served_is_told_in_openais_words_below_its_paths() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let mut client = up.client();
    let chats = client.post("/v1/chat/completions", "{}");
    let error = &chats.json()["error"];
    assert_eq!((chats.status, &error["type"]), (404, &json!("invalid_request_error")));
    assert_eq!(error["message"], "chats are not served: ask /v1/completions");
    let method = client.get(PATH);
    assert_eq!((method.status, &method.json()["error"]["type"]), (405, &json!("invalid_request_error")));
    let unknown = client.post(PATH, "{\"model\": \"letters\", \"prompt\": \"a\"}").json()["error"].clone();
    assert_eq!((&unknown["type"], &unknown["code"]), (&json!("invalid_request_error"), &json!("model_not_found")));
    assert!(client.post("/v1/models/m:dance", "{}").error().contains("nothing is served"));
}

#[test]
fn bad_completions_are_refused_each_with_its_parameter() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let good = json!({ "model": "text", "prompt": "a", "max_tokens": 2, "seed": 1 });
    let mut client = up.client();
    let expected = complete(&mut client, good.clone())["choices"].clone();
    let mut check = |key: &str, value: Value, status: u16, param: Value, why: &str| {
        let mut ask = good.clone();
        ask[key] = value;
        let answer = client.post(PATH, &ask.to_string());
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"]), (status, &param), "{ask}: {}", answer.text());
        assert!(error["message"].as_str().unwrap().contains(why), "{ask}: {error}");
        assert!(error["type"].is_string() && error.as_object().unwrap().contains_key("code"));
    };
    check("model", json!("letters"), 404, json!("model"), "unknown model 'letters'");
    check("model", json!("text:7"), 404, json!("model"), "unknown version 7 of model 'text'");
    check("model", json!("text:canary"), 404, json!("model"), "unknown label 'canary'");
    check("model", json!("digits"), 400, json!("model"), "continues no texts: it reads features");
    check("model", json!(7), 400, json!("model"), "must be a string, not a number");
    check("model", Value::Null, 400, json!("model"), "'model' is missing");
    check("prompt", Value::Null, 400, json!("prompt"), "'prompt' is missing");
    check("prompt", json!(""), 400, json!("prompt"), "the prompt has no tokens");
    check("prompt", json!([]), 400, json!("prompt"), "an empty list");
    check("prompt", json!({ "a": 1 }), 400, json!("prompt"), "must be a string, not an object");
    check("prompt", json!("x".repeat(CONTEXT + 1)), 400, json!("prompt"), "97 tokens, and the model's context is 96");
    check("prompt", json!(["a", "x".repeat(CONTEXT + 1)]), 400, json!("prompt"), "prompt 1: the prompt has 97 tokens");
    check("prompt", json!([65, 256]), 400, json!("prompt"), "token 256 at place 1 is none of the model's 256");
    check("prompt", json!([-1]), 400, json!("prompt"), "token -1 at place 0");
    check("prompt", json!([1_i64 << 40]), 400, json!("prompt"), "token 1099511627776 is none");
    check("prompt", json!([vec![65; CONTEXT + 1]]), 400, json!("prompt"), "97 tokens, and the model's context is 96");
    check("prompt", json!([[65], []]), 400, json!("prompt"), "prompt 1: the prompt has no tokens");
    check("prompt", json!(vec!["a"; 129]), 400, json!("prompt"), "more than 128 texts");
    check("max_tokens", json!(-1), 400, json!("max_tokens"), "must be 0 or more, not -1");
    check("max_tokens", json!("5"), 400, json!("max_tokens"), "must be a number, not a string");
    check("max_tokens", json!(1.5), 400, json!("max_tokens"), "must be a whole number");
    check("temperature", json!(2.1), 400, json!("temperature"), "must be 0 to 2, not 2.1");
    check("temperature", json!("hot"), 400, json!("temperature"), "must be a number");
    check("top_p", json!(-0.1), 400, json!("top_p"), "must be 0 to 1");
    check("n", json!(0), 400, json!("n"), "must be 1 to 128, not 0");
    check("n", json!(129), 400, json!("n"), "must be 1 to 128, not 129");
    check("best_of", json!(3), 400, json!("best_of"), "'best_of' is not served");
    check("stop", json!(["a", 1]), 400, json!("stop"), "must be a string, not a number");
    check("stop", json!(vec!["a"; 17]), 400, json!("stop"), "more than 16");
    check("seed", json!(1.5), 400, json!("seed"), "must be a whole number");
    check("logprobs", json!(6), 400, json!("logprobs"), "must be 0 to 5");
    check("echo", json!(1), 400, json!("echo"), "must be true or false");
    check("stream", json!("yes"), 400, json!("stream"), "must be true or false");
    check("stream_options", json!({ "include_usage": true }), 400, json!("stream_options"), "for streams only");
    check("presence_penalty", json!(3), 400, json!("presence_penalty"), "must be -2 to 2");
    check("suffix", json!("b"), 400, json!("suffix"), "is not served");
    check("logit_bias", json!({ "65": 1 }), 400, json!("logit_bias"), "is not served");
    check("top_a", json!(1), 400, json!("top_a"), "'top_a' is not known here");
    // Twice the texts that a request may have.
    let many = json!({ "model": "text", "prompt": ["a", "b"], "n": 65 });
    assert_eq!(up.client().post(PATH, &many.to_string()).json()["error"]["param"], "n");
    let long = json!({ "model": "text", "prompt": "x".repeat(CONTEXT + 1) });
    assert_eq!(up.client().post(PATH, &long.to_string()).json()["error"]["code"], "context_length_exceeded");
    for (body, status) in [("", 400), ("{", 400), ("[]", 400), ("{\"model\": \"text\", \"prompt\": \"\\ud800\"}", 400)]
    {
        let answer = up.client().post(PATH, body);
        assert_eq!(answer.status, status, "{body}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error", "{body}");
    }
    assert_eq!(up.client().get(PATH).status, 405);
    // What changes nothing is let pass, and nothing that was refused has changed anything.
    let mut harmless = good;
    for (key, value) in [
        ("user", json!("me")),
        ("logit_bias", json!({})),
        ("suffix", json!("")),
        ("best_of", json!(1)),
        ("stop", Value::Null),
    ] {
        harmless[key] = value;
    }
    assert_eq!(complete(&mut up.client(), harmless)["choices"], expected);
}

#[test]
fn a_text_needs_a_key_where_there_are_keys() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("text/1"), &writer(CONTEXT, 0));
    let mut config = Config::new(dir.path().to_path_buf());
    config.keys = Keys::parse("0123456789abcdef").unwrap();
    let up = Up::with(config, elastic_serve::repository::bundles());
    let body = json!({ "model": "text", "prompt": "a" }).to_string();
    let refused = up.client().post(PATH, &body);
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (401, &json!("invalid_api_key")));
    let key = [("authorization", "Bearer 0123456789abcdef")];
    assert_eq!(up.client().ask("POST", PATH, &key, body.as_bytes()).status, 200);
}

#[test]
fn tritons_generate_says_the_same_at_once_and_in_events() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let mut client = up.client();
    let ask =
        json!({ "model": "text", "prompt": "Two and", "max_tokens": 30, "seed": 5, "temperature": 0.8, "top_k": 40 });
    let text = complete(&mut client, ask)["choices"][0]["text"].clone();
    let parameters = json!({ "max_tokens": 30, "seed": 5, "temperature": 0.8, "top_k": 40 });
    let mut ask = json!({ "id": "7", "text_input": "Two and", "parameters": parameters });
    let answer = client.post("/v2/models/text/generate", &ask.to_string());
    let expected = json!({ "id": "7", "model_name": "text", "model_version": "1", "text_output": text });
    assert_eq!((answer.status, answer.json()), (200, expected));
    ask["parameters"]["stream"] = json!(true);
    let answer = client.post("/v2/models/text/versions/1/generate_stream", &ask.to_string());
    let events = answer.text();
    let events = events.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").expect("an event"));
    let events: Vec<Value> = events.map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(events.len() > 5 && events.iter().all(|event| event["id"] == "7" && event["model_version"] == "1"));
    let pieces: String = events.iter().map(|event| event["text_output"].as_str().unwrap()).collect();
    assert_eq!(text, pieces);
    let beside = json!({ "text_input": "Two and", "max_tokens": 30, "seed": 5, "temperature": 0.8, "top_k": 40, "stream": false });
    assert_eq!(client.post("/v2/models/text/generate", &beside.to_string()).json()["text_output"], text);
    assert!(client.get("/v2").json()["extensions"].as_array().unwrap().contains(&json!("generate")));
    let mut check = |path: &str, ask: Value, status: u16, why: &str| {
        let answer = client.post(path, &ask.to_string());
        assert_eq!(answer.status, status, "{ask}: {}", answer.text());
        assert!(answer.error().contains(why), "{ask}: {}", answer.text());
    };
    check("/v2/models/letters/generate", json!({ "text_input": "a" }), 404, "unknown model 'letters'");
    check("/v2/models/digits/generate", json!({ "text_input": "a" }), 400, "continues no texts");
    check("/v2/models/text/generate", json!({}), 400, "'text_input' is missing");
    check("/v2/models/text/generate", json!({ "text_input": 7 }), 400, "must be a string");
    check("/v2/models/text/generate", json!({ "text_input": "a", "stream": true }), 400, "ask generate_stream");
    let both = json!({ "text_input": "a", "seed": 1, "parameters": { "seed": 2 } });
    check("/v2/models/text/generate", both, 400, "'seed' stands both in 'parameters' and beside it");
    check("/v2/models/text/generate", json!({ "text_input": "a", "beams": 2 }), 400, "'beams' is not known");
    check("/v2/models/text/generate_stream", json!({ "text_input": "" }), 400, "no tokens");
    let long = json!({ "text_input": "x".repeat(CONTEXT + 1) });
    check("/v2/models/text/generate_stream", long, 400, "the model's context is 96");
    let negative = json!({ "text_input": "a", "parameters": { "max_tokens": -1 } });
    check("/v2/models/text/generate_stream", negative, 400, "0 or more");
    let nothing = client.post("/v2/models/text/generate_stream", "{\"text_input\": \"a\", \"max_tokens\": 0}").text();
    assert_eq!(nothing.matches("data: ").count(), 1, "{nothing}");
    assert!(nothing.contains("\"text_output\":\"\""), "{nothing}");
}

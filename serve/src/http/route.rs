//! What a method and a path ask for. One table for all protocols; names are decoded here.

use crate::refusal::{Refusal, quote};
use crate::serving::Which;
use elastic_spec::access::Role;
use hyper::Method;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Alive,
    Live,
    Ready,
    Metrics,
    /// The open inference protocol, v2.
    Server,
    Models,
    Model(String, Which),
    ModelReady(String, Which),
    ModelConfig(String, Which),
    /// Of one model, or of all.
    Stats(Option<(String, Which)>),
    Infer(String, Which),
    Generate(String, Which),
    GenerateStream(String, Which),
    Index,
    Load(String),
    Unload(String),
    /// TensorFlow Serving's REST, KServe's v1, and OpenAI's list of models, which share paths.
    V1Models,
    V1Model(String, Which),
    V1Metadata(String, Which),
    V1Call(String, Which, Call),
    /// OpenAI's.
    Completions,
}

/// What a v1 path asks of a model, behind its colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Predict,
    Classify,
    Regress,
    Explain,
}

/// In which words a path's errors are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Plain,
    OpenAi,
}

impl Dialect {
    /// Of a path where nothing is served, or not so: below `/v1` all but the models is OpenAI's.
    pub fn of(path: &str) -> Dialect {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match parts[..] {
            [v1, first, ..] if v1.eq_ignore_ascii_case("v1") && !is_models(first) => Dialect::OpenAi,
            _ => Dialect::Plain,
        }
    }
}

impl Route {
    pub fn dialect(&self) -> Dialect {
        match self {
            Route::Completions => Dialect::OpenAi,
            _ => Dialect::Plain,
        }
    }

    /// The role whose key is asked for. None: answered without a key, which probes do not have.
    pub fn needed(&self) -> Option<Role> {
        match self {
            Route::Alive | Route::Live | Route::Ready => None,
            Route::Load(_) | Route::Unload(_) => Some(Role::Admin),
            _ => Some(Role::Viewer),
        }
    }

    fn method(&self) -> &'static str {
        match self {
            Route::Infer(..) | Route::Index | Route::Load(_) | Route::Unload(_) => "POST",
            Route::Generate(..) | Route::GenerateStream(..) | Route::V1Call(..) | Route::Completions => "POST",
            _ => "GET",
        }
    }
}

pub fn route(method: &Method, path: &str) -> Result<Route, Refusal> {
    let unknown = || match path.trim_matches('/').eq_ignore_ascii_case("v1/chat/completions") {
        true => Refusal::NotFound("chats are not served: ask /v1/completions".into()),
        false => Refusal::NotFound(format!("nothing is served at '{}'", quote(path))),
    };
    let route = find(path)?.ok_or_else(unknown)?;
    let allowed = route.method();
    let fits = method.as_str() == allowed || (allowed == "GET" && method == Method::HEAD);
    match fits {
        true => Ok(route),
        false => Err(Refusal::Method { method: quote(method.as_str()), allowed }),
    }
}

fn find(path: &str) -> Result<Option<Route>, Refusal> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if parts.first().is_some_and(|part| part.eq_ignore_ascii_case("v1")) {
        return v1(&parts[1..]);
    }
    Ok(Some(match parts.as_slice() {
        [""] => Route::Alive,
        ["ping"] => Route::Ready,
        ["metrics"] => Route::Metrics,
        ["v2"] => Route::Server,
        ["v2", "health", "live"] => Route::Live,
        ["v2", "health", "ready"] => Route::Ready,
        ["v2", "models"] => Route::Models,
        ["v2", "models", "stats"] => Route::Stats(None),
        ["v2", "repository", "index"] => Route::Index,
        ["v2", "repository", "models", name, "load"] => Route::Load(decoded(name)?),
        ["v2", "repository", "models", name, "unload"] => Route::Unload(decoded(name)?),
        ["v2", "models", name, rest @ ..] => {
            let (which, rest) = match rest {
                ["versions", version, rest @ ..] => (Which::parse(&decoded(version)?)?, rest),
                rest => (Which::Default, rest),
            };
            let name = decoded(name)?;
            match rest {
                [] => Route::Model(name, which),
                ["ready"] => Route::ModelReady(name, which),
                ["config"] => Route::ModelConfig(name, which),
                ["stats"] => Route::Stats(Some((name, which))),
                ["infer"] => Route::Infer(name, which),
                ["generate"] => Route::Generate(name, which),
                ["generate_stream"] => Route::GenerateStream(name, which),
                _ => return Ok(None),
            }
        }
        _ => return Ok(None),
    }))
}

/// Behind `/v1`. Words are read in any case, as TensorFlow Serving reads them; names are not.
fn v1(parts: &[&str]) -> Result<Option<Route>, Refusal> {
    let is = |part: &str, word: &str| part.eq_ignore_ascii_case(word);
    let Some((first, parts)) = parts.split_first() else { return Ok(None) };
    if is(first, "completions") && parts.is_empty() {
        return Ok(Some(Route::Completions));
    }
    if !is_models(first) {
        return Ok(None);
    }
    let Some((last, before)) = parts.split_last() else { return Ok(Some(Route::V1Models)) };
    let (parts, metadata) = match is(last, "metadata") && !before.is_empty() {
        true => (before, true),
        false => (parts, false),
    };
    let last = parts.last().expect("not empty, as seen above");
    let (last, call) = match last.rsplit_once(':') {
        None => (*last, None),
        Some((name, word)) => match call(word) {
            Some(call) => (name, Some(call)),
            None => return Ok(None),
        },
    };
    let mut parts = parts.to_vec();
    *parts.last_mut().expect("not empty, as seen above") = last;
    let (name, which) = match parts.as_slice() {
        [name] => (name, Which::Default),
        [name, word, version] if is(word, "versions") => (name, Which::parse(&decoded(version)?)?),
        [name, word, label] if is(word, "labels") => (name, Which::Label(decoded(label)?)),
        _ => return Ok(None),
    };
    let name = decoded(name)?;
    Ok(match (call, metadata) {
        (None, false) => Some(Route::V1Model(name, which)),
        (None, true) => Some(Route::V1Metadata(name, which)),
        (Some(call), false) => Some(Route::V1Call(name, which, call)),
        (Some(_), true) => None,
    })
}

fn is_models(part: &str) -> bool {
    part.eq_ignore_ascii_case("models")
}

fn call(word: &str) -> Option<Call> {
    match word.to_ascii_lowercase().as_str() {
        "predict" => Some(Call::Predict),
        "classify" => Some(Call::Classify),
        "regress" => Some(Call::Regress),
        "explain" => Some(Call::Explain),
        _ => None,
    }
}

/// Without percent signs. A name that is not UTF-8 names nothing.
fn decoded(part: &str) -> Result<String, Refusal> {
    let bad = || Refusal::Invalid(format!("'{}' is no name: it is not percent-encoded UTF-8", quote(part)));
    if part.is_empty() {
        return Err(Refusal::invalid("a name in the path is empty"));
    }
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
        bytes.push(match byte {
            b'%' => (digit(rest.next())? * 16 + digit(rest.next())?) as u8,
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(path: &str) -> Result<Route, u16> {
        route(&Method::GET, path).map_err(|refusal| refusal.status())
    }

    fn post(path: &str) -> Result<Route, u16> {
        route(&Method::POST, path).map_err(|refusal| refusal.status())
    }

    fn m() -> String {
        "m".into()
    }

    #[test]
    fn the_paths_of_the_open_inference_protocol() {
        assert_eq!(get("/v2"), Ok(Route::Server));
        assert_eq!(get("/v2/health/ready"), Ok(Route::Ready));
        assert_eq!(get("/v2/models/m"), Ok(Route::Model(m(), Which::Default)));
        assert_eq!(get("/v2/models/m/versions/3/ready"), Ok(Route::ModelReady(m(), Which::Version(3))));
        assert_eq!(post("/v2/models/m/infer"), Ok(Route::Infer(m(), Which::Default)));
        assert_eq!(post("/v2/models/a%20b/versions/3/infer"), Ok(Route::Infer("a b".into(), Which::Version(3))));
        assert_eq!(post("/v2/models/m/generate"), Ok(Route::Generate(m(), Which::Default)));
        let stream = Route::GenerateStream(m(), Which::Version(3));
        assert_eq!(post("/v2/models/m/versions/3/generate_stream"), Ok(stream));
        assert_eq!(get("/v2/models/stats"), Ok(Route::Stats(None)));
        assert_eq!(post("/v2/repository/models/m/load"), Ok(Route::Load(m())));
    }

    #[test]
    fn the_paths_of_tensorflow_serving() {
        assert_eq!(get("/v1/models"), Ok(Route::V1Models));
        assert_eq!(get("/v1/models/m"), Ok(Route::V1Model(m(), Which::Default)));
        assert_eq!(get("/V1/Models/m/Versions/2/METADATA"), Ok(Route::V1Metadata(m(), Which::Version(2))));
        assert_eq!(post("/v1/models/m:predict"), Ok(Route::V1Call(m(), Which::Default, Call::Predict)));
        let labelled = Route::V1Call(m(), Which::Label("stable".into()), Call::Classify);
        assert_eq!(post("/v1/models/m/labels/stable:classify"), Ok(labelled));
        assert_eq!(post("/v1/models/m/versions/1/labels/x:predict"), Err(404));
        assert_eq!(post("/v1/models/m:dance"), Err(404));
    }

    #[test]
    fn a_wrong_method_or_name_is_told() {
        assert_eq!(get("/v2/models/m/infer"), Err(405));
        assert_eq!(post("/v2/models/m"), Err(405));
        assert_eq!(get("/v2/models/m/versions/x"), Err(400));
        assert_eq!(get("/v2/models/%ff"), Err(400));
        assert_eq!(get("/v2/models/%4"), Err(400));
        assert_eq!(get("/v3"), Err(404));
    }

    #[test]
    fn what_is_not_served_below_v1_is_told_in_the_words_of_who_asks() {
        let told = |method: &Method, path: &str| (route(method, path).unwrap_err().to_string(), Dialect::of(path));
        let chats = "chats are not served: ask /v1/completions".to_string();
        assert_eq!(told(&Method::POST, "/v1/chat/completions"), (chats, Dialect::OpenAi));
        assert_eq!(told(&Method::POST, "/v1/embeddings").1, Dialect::OpenAi);
        assert_eq!(told(&Method::GET, "/v1/completions").1, Dialect::OpenAi);
        assert_eq!(told(&Method::POST, "/v1/Models/m:dance").1, Dialect::Plain);
        assert_eq!(told(&Method::GET, "/v2/chat/completions").1, Dialect::Plain);
    }

    proptest! {
        #[test]
        fn any_path_leads_somewhere_or_is_refused(path in "/?(v1|v2|models|versions|:|%|/|predict|.){0,12}") {
            let _ = get(&path);
            let _ = post(&path);
        }
    }
}

//! Hooks: checked before anything is made, and those of the launcher's child in its terms.

use bowline_launch_plan::{HookProgram, HookPrograms};
use bowline_model::runtime_spec::{Hook, Hooks};

use crate::PlanError;
use crate::bytes::c_string;

/// The most hooks of a container.
const MAX_HOOKS: usize = 256;
/// The most bytes of arguments and environment of all of them.
const MAX_WORDS: usize = 1 << 20;
/// The longest timeout, seconds.
const MAX_TIMEOUT: i32 = 3600;

/// Refuses what could not be run.
pub(crate) fn check(hooks: &Hooks) -> Result<(), PlanError> {
    let (mut count, mut bytes) = (0, 0);
    for (kind, list) in hooks.kinds() {
        for (index, hook) in list.iter().enumerate() {
            let field = format!("hooks.{kind}[{index}]");
            count += 1;
            bytes += hook.args.iter().chain(&hook.env).map(|word| word.len() + 1).sum::<usize>();
            if !hook.path.starts_with('/') {
                let reason = format!("{:?} is not absolute", hook.path);
                return Err(PlanError::invalid(format!("{field}.path"), reason));
            }
            if let Some(timeout) = hook.timeout.filter(|timeout| !(1..=MAX_TIMEOUT).contains(timeout)) {
                let reason = format!("{timeout} is not between 1 and {MAX_TIMEOUT} seconds");
                return Err(PlanError::invalid(format!("{field}.timeout"), reason));
            }
            let unnamed = |line: &&String| line.split_once('=').is_none_or(|(name, _)| name.is_empty());
            if let Some(line) = hook.env.iter().find(unnamed) {
                let reason = format!("{line:?} does not read NAME=value");
                return Err(PlanError::invalid(format!("{field}.env"), reason));
            }
            hook_program(&field, hook, 0)?;
        }
    }
    if count > MAX_HOOKS {
        return Err(PlanError::invalid("hooks", format!("there are {count}; the limit is {MAX_HOOKS}")));
    }
    if bytes > MAX_WORDS {
        let reason = format!("their args and env have {bytes} bytes; the limit is {MAX_WORDS}");
        return Err(PlanError::invalid("hooks", reason));
    }
    Ok(())
}

/// Those that run in the container. `limit`: seconds for one that names none; 0: it may take for ever.
pub fn hook_programs(hooks: &Hooks, limit: u32) -> Result<HookPrograms, PlanError> {
    let list = |kind: &str, hooks: &[Hook]| {
        let named = hooks.iter().enumerate();
        let made = named.map(|(index, hook)| hook_program(&format!("hooks.{kind}[{index}]"), hook, limit));
        made.collect::<Result<Vec<_>, _>>()
    };
    Ok(HookPrograms {
        create: list("createContainer", &hooks.create_container)?,
        start: list("startContainer", &hooks.start_container)?,
    })
}

/// One of them. Without arguments it gets its path as its name.
pub fn hook_program(field: &str, hook: &Hook, limit: u32) -> Result<HookProgram, PlanError> {
    let words = |part: &str, words: &[String]| {
        let field = format!("{field}.{part}");
        words.iter().map(|word| c_string(&field, word.as_str())).collect::<Result<Vec<_>, _>>()
    };
    let path = c_string(&format!("{field}.path"), hook.path.as_str())?;
    let mut argv = words("args", &hook.args)?;
    if argv.is_empty() {
        argv.push(path.clone());
    }
    let limit = hook.timeout.and_then(|timeout| u32::try_from(timeout).ok()).unwrap_or(limit);
    Ok(HookProgram { path, argv, envp: words("env", &hook.env)?, limit })
}

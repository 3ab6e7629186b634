//! Cache and memory bandwidth by resctrl (OCI runtime spec 1.3, `linux.intelRdt`; Linux Documentation/filesystems/resctrl.rst).
//!
//! A class of service is a folder of resctrl. One that the spec names is somebody else's, or is made by the first container that names it and stays.
//! Without a name it is the container's own, and goes with it; so does its folder of monitoring.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bowline_model::runtime_spec::IntelRdt;

/// Why a class of service cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum ResctrlError {
    /// It could not be given on any machine.
    #[error("linux.intelRdt.{field}: {reason}")]
    Invalid {
        /// Below `linux.intelRdt`.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// This machine does not have it, or does not show it.
    #[error(
        "linux.intelRdt: resctrl is not mounted at {root}; mount it there (`mount -t resctrl resctrl {root}`) on a machine that has it",
        root = .0.display()
    )]
    Missing(PathBuf),
    /// What is there is something else.
    #[error("linux.intelRdt.{0}")]
    Differs(String),
    /// The kernel did not want it.
    #[error("linux.intelRdt: could not {doing}")]
    Failed {
        /// What was being done, to which folder.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Where resctrl is mounted.
pub const ROOT: &str = "/sys/fs/resctrl";
/// Entries of resctrl that are no classes.
const TAKEN: [&str; 3] = ["info", "mon_groups", "mon_data"];
/// The longest schemata, bytes: resctrl reads a page at most.
const MAX_SCHEMATA: usize = 4096;

/// Refuses what could not be applied on any machine.
pub fn check(wish: &IntelRdt) -> Result<(), ResctrlError> {
    let bad = |field: &'static str, reason: String| ResctrlError::Invalid { field, reason };
    let name = wish.clos_id.as_str();
    let fits = name == "/" || !(name.contains('/') || name == "." || name == ".." || name.len() > 255);
    if !fits || name.contains(['\n', '\0']) || TAKEN.contains(&name) {
        return Err(bad("closID", format!("{name:?} is no name of a class")));
    }
    for line in lines(wish) {
        let value = line.split_once(':').is_some_and(|(resource, _)| !resource.trim().is_empty());
        if !value || line.contains('\n') {
            return Err(bad("schemata", format!("{line:?} does not read RESOURCE:VALUES")));
        }
    }
    if lines(wish).map(|line| line.len() + 1).sum::<usize>() > MAX_SCHEMATA {
        return Err(bad("schemata", format!("has more than {MAX_SCHEMATA} bytes")));
    }
    Ok(())
}

/// Whether this machine has resctrl.
pub fn require(root: &Path) -> Result<(), ResctrlError> {
    match root.join("schemata").exists() {
        true => Ok(()),
        false => Err(ResctrlError::Missing(root.to_owned())),
    }
}

/// Puts a process into its class, which is made if need be. `root` is where resctrl is mounted, [`ROOT`]; `container` an id that
/// no other container of the machine has.
pub fn apply(root: &Path, container: &str, wish: &IntelRdt, pid: i32) -> Result<(), ResctrlError> {
    require(root)?;
    let class = class(root, container, wish);
    let failed = |doing: &str| {
        let doing = format!("{doing} {}", class.display());
        move |source| ResctrlError::Failed { doing, source }
    };
    let wanted: Vec<&str> = lines(wish).collect();
    let there = class.is_dir();
    if there && !wish.clos_id.is_empty() && !wanted.is_empty() {
        let found = fs::read_to_string(class.join("schemata")).map_err(failed("read the schemata of"))?;
        if let Some(line) = differing(&wanted, &found) {
            return Err(ResctrlError::Differs(format!(
                "schemata: the class {} is there with another value than {line:?}",
                wish.clos_id
            )));
        }
    } else if !there && !wish.clos_id.is_empty() && wanted.is_empty() {
        return Err(ResctrlError::Differs(format!(
            "closID: there is no class {}, and no schemata to make it with",
            wish.clos_id
        )));
    } else if wish.clos_id != "/" {
        make(&class).map_err(failed("make"))?;
        if !wanted.is_empty()
            && let Err(error) = fs::write(class.join("schemata"), wanted.join("\n") + "\n")
        {
            if !there {
                let _ = fs::remove_dir(&class);
            }
            let status = fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
            let doing = format!("write the schemata of {} ({})", class.display(), status.trim());
            return Err(ResctrlError::Failed { doing, source: error });
        }
    }
    fs::write(class.join("tasks"), pid.to_string()).map_err(failed("put the container into"))?;
    if watched(wish) {
        let group = monitoring(&class, container);
        make(&group).map_err(failed("make a folder of monitoring in"))?;
        fs::write(group.join("tasks"), pid.to_string()).map_err(failed("watch the container in"))?;
    }
    Ok(())
}

/// Takes away what was made for this container alone. What is not there is fine.
pub fn remove(root: &Path, container: &str, wish: &IntelRdt) -> io::Result<()> {
    let class = class(root, container, wish);
    let gone = |path: &Path| match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    if watched(wish) {
        gone(&monitoring(&class, container))?;
    }
    if wish.clos_id.is_empty() { gone(&class) } else { Ok(()) }
}

fn class(root: &Path, container: &str, wish: &IntelRdt) -> PathBuf {
    match wish.clos_id.as_str() {
        "/" => root.to_owned(),
        "" => root.join(container),
        name => root.join(name),
    }
}

fn watched(wish: &IntelRdt) -> bool {
    wish.enable_monitoring || wish.enable_cmt || wish.enable_mbm
}

fn monitoring(class: &Path, container: &str) -> PathBuf {
    class.join("mon_groups").join(container)
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The lines that are wanted. The older fields are lines of the same file.
fn lines(wish: &IntelRdt) -> impl Iterator<Item = &str> {
    let older = [&wish.l3_cache_schema, &wish.mem_bw_schema].into_iter().flat_map(|text| text.lines());
    older.chain(wish.schemata.iter().map(String::as_str)).filter(|line| !line.trim().is_empty())
}

/// The first wanted line that a class does not have: `L3:0=f;1=ff` holds the values of caches, in any order and with zeroes in front.
fn differing<'a>(wanted: &[&'a str], found: &str) -> Option<&'a str> {
    let parts = |line: &str| -> Option<(String, Vec<(String, String)>)> {
        let (resource, values) = line.split_once(':')?;
        let pair = |value: &str| {
            let (cache, mask) = value.split_once('=')?;
            let mask = mask.trim().trim_start_matches('0').to_ascii_lowercase();
            Some((cache.trim().to_owned(), mask))
        };
        let values: Option<Vec<_>> = values.split(';').map(pair).collect();
        Some((resource.trim().to_owned(), values?))
    };
    let found: Vec<_> = found.lines().filter_map(parts).collect();
    wanted.iter().copied().find(|line| {
        let Some((resource, values)) = parts(line) else { return true };
        let known = found.iter().find(|(name, _)| *name == resource);
        known.is_none_or(|(_, known)| !values.iter().all(|value| known.contains(value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "c0ffee";

    /// A folder that looks like resctrl.
    fn resctrl() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("mon_groups")).unwrap();
        for file in ["schemata", "tasks"] {
            fs::write(root.path().join(file), "").unwrap();
        }
        root
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_class_without_a_name_is_the_containers_own() {
        let root = resctrl();
        let wish = IntelRdt { schemata: vec!["L3:0=f;1=f".into(), "MB:0=50".into()], ..IntelRdt::default() };
        apply(root.path(), ID, &wish, 42).unwrap();
        assert_eq!(read(root.path().join(ID).join("schemata")), "L3:0=f;1=f\nMB:0=50\n");
        assert_eq!(read(root.path().join(ID).join("tasks")), "42");
        // Files of resctrl go with their folder.
        for file in ["schemata", "tasks"] {
            fs::remove_file(root.path().join(ID).join(file)).unwrap();
        }
        remove(root.path(), ID, &wish).unwrap();
        assert!(!root.path().join(ID).exists());
        remove(root.path(), ID, &wish).unwrap();
    }

    #[test]
    fn a_class_with_a_name_is_made_once_and_must_be_what_is_asked_for() {
        let root = resctrl();
        let gold = |schemata: &[&str]| IntelRdt {
            clos_id: "gold".into(),
            schemata: schemata.iter().map(|line| (*line).to_owned()).collect(),
            ..IntelRdt::default()
        };
        let error = apply(root.path(), ID, &gold(&[]), 1).unwrap_err();
        assert!(matches!(&error, ResctrlError::Differs(text) if text.contains("no class gold")), "{error}");
        apply(root.path(), ID, &gold(&["L3:0=f;1=0ff"]), 1).unwrap();
        apply(root.path(), ID, &gold(&["L3:1=FF;0=f"]), 2).unwrap();
        apply(root.path(), ID, &gold(&[]), 3).unwrap();
        assert_eq!(read(root.path().join("gold/tasks")), "3");
        let error = apply(root.path(), ID, &gold(&["L3:0=1"]), 4).unwrap_err();
        assert!(matches!(&error, ResctrlError::Differs(text) if text.contains("L3:0=1")), "{error}");
        remove(root.path(), ID, &gold(&[])).unwrap();
        assert!(root.path().join("gold").exists());
    }

    #[test]
    fn the_root_class_is_there_and_monitoring_is_the_containers() {
        let root = resctrl();
        let wish = IntelRdt { clos_id: "/".into(), enable_monitoring: true, ..IntelRdt::default() };
        apply(root.path(), ID, &wish, 7).unwrap();
        assert_eq!(read(root.path().join("tasks")), "7");
        let group = root.path().join("mon_groups").join(ID);
        assert_eq!(read(group.join("tasks")), "7");
        fs::remove_file(group.join("tasks")).unwrap();
        remove(root.path(), ID, &wish).unwrap();
        assert!(!group.exists() && root.path().join("tasks").exists());
    }

    #[test]
    fn nonsense_and_a_machine_without_it_are_refused() {
        for name in ["a/b", "..", "info", "a\nb"] {
            let wish = IntelRdt { clos_id: name.into(), ..IntelRdt::default() };
            assert!(matches!(check(&wish), Err(ResctrlError::Invalid { .. })), "{name:?}");
        }
        let wish = IntelRdt { schemata: vec!["L3".into()], ..IntelRdt::default() };
        assert!(check(&wish).unwrap_err().to_string().contains("schemata"));
        let nothing = tempfile::tempdir().unwrap();
        let error = apply(nothing.path(), ID, &IntelRdt::default(), 1).unwrap_err();
        assert!(error.to_string().contains("not mounted"), "{error}");
    }
}

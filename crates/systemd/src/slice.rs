//! Names of slices and what they say: `a-b.slice` lies in `a.slice` (systemd.slice(5)).

/// The end of every slice's name.
const SUFFIX: &str = ".slice";
/// The longest name of a unit, bytes (UNIT_NAME_MAX of systemd, which counts the NUL).
const MOST: usize = 255;

/// Why a text names no slice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SliceError {
    /// No `.slice` at its end.
    #[error(
        "`{0}` is no slice; with the systemd cgroup driver it is the name of one, such as `kubepods-pod1.slice`"
    )]
    Suffix(String),
    /// Too long.
    #[error("the name of the slice has {0} bytes, and systemd takes {MOST}")]
    Long(usize),
    /// A character that no unit's name has.
    #[error("`{name}` is no name of a slice: it has `{}` in it", .character.escape_default())]
    Character {
        /// The name.
        name: String,
        /// The first such character.
        character: char,
    },
    /// A dash at an end, or two in a row.
    #[error("`{0}` is no name of a slice: between dashes there must be something")]
    Dash(String),
    /// Folders that the last of them does not say.
    #[error(
        "`{path}` is not where systemd has the slice `{name}`: that is `/{expected}`; give the name alone"
    )]
    Place {
        /// As it was given.
        path: String,
        /// Its last part.
        name: String,
        /// Where that is.
        expected: String,
    },
}

/// Where a slice's cgroup is below the root of the tree, without a slash at either end: `a-b.slice` is in
/// `a.slice/a-b.slice`. Empty for the root slice, `-.slice`.
///
/// Takes what clients of CRI give as a cgroup parent: the name, with or without a slash before it, or the whole path as
/// the kubelet writes it (`CgroupName.ToSystemd`), which must be the one that the name says.
pub fn place(parent: &str) -> Result<String, SliceError> {
    let path = parent.strip_prefix('/').unwrap_or(parent);
    let path = path.strip_suffix('/').unwrap_or(path);
    let name = path.rsplit('/').next().unwrap_or_default();
    let expected = expand(name)?;
    if path == name || path == expected {
        return Ok(expected);
    }
    Err(SliceError::Place { path: parent.to_owned(), name: name.to_owned(), expected })
}

fn expand(name: &str) -> Result<String, SliceError> {
    let stem = name.strip_suffix(SUFFIX).ok_or_else(|| SliceError::Suffix(name.to_owned()))?;
    if name.len() > MOST {
        return Err(SliceError::Long(name.len()));
    }
    // No `@`: a slice is never made from a template (slice_name_is_valid of systemd).
    let allowed = |character: char| character.is_ascii_alphanumeric() || ":-_.\\".contains(character);
    if let Some(character) = name.chars().find(|character| !allowed(*character)) {
        return Err(SliceError::Character { name: name.to_owned(), character });
    }
    if stem == "-" {
        return Ok(String::new());
    }
    if stem.split('-').any(str::is_empty) {
        return Err(SliceError::Dash(name.to_owned()));
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    let folders: Vec<String> = ends.map(|end| format!("{}{SUFFIX}", &stem[..end])).collect();
    Ok(folders.join("/"))
}

/// The name of the slice whose place is `path`, as [`place`] gives it.
pub fn name_of(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some("") | None => "-.slice",
        Some(name) => name,
    }
}

/// Whether a text can only be meant as a slice: its last part ends as one.
pub fn looks_like_slice(parent: &str) -> bool {
    parent.trim_end_matches('/').ends_with(SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_where_they_are() {
        for (parent, expected) in [
            ("system.slice", "system.slice"),
            ("/system.slice", "system.slice"),
            ("kubepods.slice/", "kubepods.slice"),
            ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
            ("/a-b.slice", "a.slice/a-b.slice"),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
            ),
            ("-.slice", ""),
            ("/-.slice", ""),
            (r"a\x2db.slice", r"a\x2db.slice"),
            ("a.b-c.slice", "a.b.slice/a.b-c.slice"),
        ] {
            assert_eq!(place(parent).as_deref(), Ok(expected), "{parent}");
        }
    }

    #[test]
    fn what_is_no_slice_is_told_why() {
        let long = format!("{}.slice", "a".repeat(250));
        for (parent, part) in [
            ("", "is no slice"),
            ("/", "is no slice"),
            ("/kubepods/pod1", "is no slice"),
            ("web.service", "is no slice"),
            ("a.slice/x", "is no slice"),
            (".slice", "between dashes"),
            ("-a.slice", "between dashes"),
            ("a-.slice", "between dashes"),
            ("a--b.slice", "between dashes"),
            ("--.slice", "between dashes"),
            ("a@b.slice", "`@`"),
            ("a b.slice", "` `"),
            ("a\n.slice", r"`\n`"),
            ("é.slice", r"\u{e9}"),
            ("//a.slice", "give the name alone"),
            ("x.slice/a-b.slice", "`/a.slice/a-b.slice`"),
            ("../a.slice", "`/a.slice`"),
            (long.as_str(), "256 bytes"),
        ] {
            let error = place(parent).expect_err(parent).to_string();
            assert!(error.contains(part), "{parent}: {error}");
        }
    }

    #[test]
    fn the_longest_name_fits() {
        assert!(place(&format!("{}.slice", "a".repeat(249))).is_ok());
    }

    #[test]
    fn a_place_names_its_slice() {
        for parent in ["-.slice", "a-b.slice", "system.slice"] {
            assert_eq!(name_of(&place(parent).unwrap()), parent);
        }
    }
}

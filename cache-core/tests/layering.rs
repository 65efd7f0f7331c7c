//! The order of modules in `lib.rs` is the direction of imports: a module uses what stands below it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::visit::{self, Visit};

/// The modules of `lib.rs` in order, and the files of each.
fn modules() -> Vec<(String, Vec<PathBuf>)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let library = syn::parse_file(&fs::read_to_string(source.join("lib.rs")).unwrap()).unwrap();
    let modules = library.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) => Some(module.ident.to_string()),
        _ => None,
    });
    modules
        .map(|name| {
            let mut files = Vec::new();
            let stem = if name == "__private" { "macro_door" } else { &name };
            collect(&source.join(stem), &mut files);
            files.extend([source.join(format!("{stem}.rs"))].into_iter().filter(|file| file.exists()));
            assert!(!files.is_empty(), "no file of module {name}");
            (name, files)
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Collects the first segment behind every `crate::`, outside of tests.
#[derive(Default)]
struct Uses(BTreeSet<String>);

impl Visit<'_> for Uses {
    fn visit_item_mod(&mut self, module: &syn::ItemMod) {
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        if let syn::UseTree::Path(path) = &item.tree
            && path.ident == "crate"
        {
            self.names(&path.tree);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let mut segments = path.segments.iter();
        if segments.next().is_some_and(|first| first.ident == "crate")
            && let Some(module) = segments.next()
        {
            self.0.insert(module.ident.to_string());
        }
        visit::visit_path(self, path);
    }
}

impl Uses {
    fn names(&mut self, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => drop(self.0.insert(path.ident.to_string())),
            syn::UseTree::Name(name) => drop(self.0.insert(name.ident.to_string())),
            syn::UseTree::Rename(rename) => drop(self.0.insert(rename.ident.to_string())),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.names(tree)),
            syn::UseTree::Glob(_) => panic!("a glob import of the whole crate hides what is used"),
        }
    }
}

/// Names that `lib.rs` re-exports, by their module.
fn re_exports() -> BTreeMap<String, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let library = syn::parse_file(&fs::read_to_string(source).unwrap()).unwrap();
    let mut found = BTreeMap::new();
    for item in library.items {
        let syn::Item::Use(item) = item else { continue };
        let syn::UseTree::Path(path) = item.tree else { continue };
        let syn::UseTree::Group(group) = *path.tree else { continue };
        for tree in group.items {
            let syn::UseTree::Path(path) = tree else { continue };
            let mut names = Uses::default();
            names.names(&path.tree);
            found.extend(names.0.into_iter().map(|name| (name, path.ident.to_string())));
        }
    }
    found
}

#[test]
fn no_module_uses_one_that_stands_above_it() {
    let modules = modules();
    let place: BTreeMap<&str, usize> = modules.iter().enumerate().map(|(at, (name, _))| (name.as_str(), at)).collect();
    let re_exports = re_exports();
    let mut broken = Vec::new();
    for (at, (name, files)) in modules.iter().enumerate() {
        for file in files {
            let mut uses = Uses::default();
            uses.visit_file(&syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap());
            for used in uses.0 {
                let used = re_exports.get(&used).unwrap_or(&used);
                if place.get(used.as_str()).is_some_and(|used| *used < at) {
                    broken.push(format!("{name} uses {used}, which stands above it ({})", file.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(modules.len() > 15, "the list was read");
}

/// One server is a room that the rest of the remote tier stands on: it knows neither steps nor notices nor verbs.
#[test]
fn the_wire_knows_nothing_of_what_it_carries() {
    let mut files = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/remote/wire"), &mut files);
    assert!(files.len() > 5, "the folder was read");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let mut uses = Uses::default();
        uses.visit_file(&syn::parse_file(&text).unwrap());
        let is_above = uses.0.contains("remote") || text.contains("super::super");
        assert!(!is_above, "{} reaches out of its room", file.display());
    }
}

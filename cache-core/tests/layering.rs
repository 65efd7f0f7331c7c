//! The order of modules is the direction of imports: a module uses what stands below it, in `lib.rs` and in each folder.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use syn::visit::{self, Visit};

type Names = Vec<String>;

/// A module: its path, such as `crate::remote::wire`, and its file.
struct Module {
    path: Names,
    items: syn::File,
    children: Names,
}

/// All modules, from `lib.rs` on.
fn modules() -> Vec<Module> {
    let mut found = Vec::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    collect(vec!["crate".to_owned()], &source.join("lib.rs"), &source, &mut found);
    found
}

/// `folder` is where the files of the module's children are.
fn collect(path: Names, file: &Path, folder: &Path, found: &mut Vec<Module>) {
    let items = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
    let mut children = Vec::new();
    for item in &items.items {
        let syn::Item::Mod(module) = item else { continue };
        if module.content.is_some() {
            continue;
        }
        let name = module.ident.to_string();
        let stem = if name == "__private" { "macro_door" } else { &name };
        let within = folder.join(stem);
        let files: Vec<PathBuf> = [folder.join(format!("{stem}.rs")), within.join("mod.rs")].into();
        let file = files.iter().find(|file| file.exists()).unwrap_or_else(|| panic!("no file of {path:?}::{name}"));
        collect(path.iter().cloned().chain([name.clone()]).collect(), file, &within, found);
        children.push(name);
    }
    found.push(Module { path, items, children });
}

/// All paths that a file names outside of its tests, those in groups one by one.
#[derive(Default)]
struct Paths(Vec<Names>);

impl Visit<'_> for Paths {
    fn visit_item_mod(&mut self, module: &syn::ItemMod) {
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        self.tree(Vec::new(), &item.tree);
    }

    fn visit_path(&mut self, path: &syn::Path) {
        self.0.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

impl Paths {
    fn of(file: &syn::File) -> Vec<Names> {
        let mut paths = Self::default();
        paths.visit_file(file);
        paths.0
    }

    fn tree(&mut self, mut before: Names, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(before, &path.tree);
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(before.clone(), tree)),
            syn::UseTree::Name(name) => self.0.push([before, vec![name.ident.to_string()]].concat()),
            syn::UseTree::Rename(name) => self.0.push([before, vec![name.ident.to_string()]].concat()),
            syn::UseTree::Glob(_) => {
                assert_ne!(before, ["crate"], "a glob import of the whole crate hides what is used");
                self.0.push(before);
            }
        }
    }
}

/// The path from `crate` on, as seen in the module `from`; `None` for one that leads elsewhere.
fn absolute(path: &Names, from: &Names) -> Option<Names> {
    let supers = path.iter().take_while(|name| *name == "super").count();
    match path.first()?.as_str() {
        "crate" => Some(path.clone()),
        "self" => Some([from, &path[1..]].concat()),
        "super" => Some([&from[..from.len() - supers], &path[supers..]].concat()),
        _ => None,
    }
}

/// Names that `lib.rs` re-exports, and the room each comes from.
fn re_exports(library: &Module) -> BTreeMap<String, String> {
    let uses = library.items.items.iter().filter_map(|item| match item {
        syn::Item::Use(item) => Some(item),
        _ => None,
    });
    let mut paths = Paths::default();
    uses.for_each(|item| paths.visit_item_use(item));
    let paths = paths.0.into_iter().filter(|path| path[0] == "self");
    paths.filter_map(|path| Some((path.last()?.clone(), path.get(1)?.clone()))).collect()
}

#[test]
fn no_module_uses_one_that_stands_above_it() {
    let modules = modules();
    let re_exports = re_exports(modules.last().unwrap());
    let children: BTreeMap<&Names, &Names> = modules.iter().map(|module| (&module.path, &module.children)).collect();
    let mut broken = Vec::new();
    for module in &modules {
        for path in Paths::of(&module.items).iter().filter_map(|path| absolute(path, &module.path)) {
            let shared = path.iter().zip(&module.path).take_while(|(there, here)| there == here).count();
            let (Some(there), Some(here)) = (path.get(shared), module.path.get(shared)) else { continue };
            let there = if shared == 1 { re_exports.get(there).unwrap_or(there) } else { there };
            // A name that is no module is an item of the folder itself.
            let siblings = children[&module.path[..shared].to_vec()];
            let place = |name: &String| siblings.iter().position(|sibling| sibling == name);
            if place(there).is_some_and(|there| Some(there) < place(here)) {
                broken.push(format!("{} uses {}, which stands above it", module.path.join("::"), path.join("::")));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(modules.len() > 40, "the files were read");
}

/// One server is a room that the rest of the remote tier stands on: it knows neither steps nor notices nor verbs.
#[test]
fn the_wire_knows_nothing_of_what_it_carries() {
    let room = ["crate", "remote", "wire"];
    let modules = modules();
    let inside = modules.iter().filter(|module| module.path.starts_with(&room.map(str::to_owned)));
    assert!(inside.clone().count() > 5, "the folder was read");
    for module in inside {
        for path in Paths::of(&module.items).iter().filter_map(|path| absolute(path, &module.path)) {
            let leads_out = path.iter().take(2).eq(&room[..2]) && !path.iter().take(3).eq(&room);
            assert!(!leads_out, "{} uses {}, outside of its room", module.path.join("::"), path.join("::"));
        }
    }
}

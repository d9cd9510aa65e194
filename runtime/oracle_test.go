package runtime

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	golandlock "github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/specs"
	"nemoclaw/specs/landlock"
	"nemoclaw/specs/policy"
)

// probeTree makes this program one that confines itself to parts of a tree, and
// tells what it may do there.
const probeTree = "probe-tree"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == probeTree {
		if err := probe(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// probing is what the probing program is told.
type probing struct {
	Tree   string
	Paths  []string // to try, in this order
	ByUs   bool     // descriptor 3 is our ruleset; else the lists below are
	Handle uint64   // rights, for go-landlock
	Read   []string // read and execute
	Write  []string // and everything else but making devices
}

// What our compiler of rules and the runtime grant is what go-landlock's
// high-level API grants for the same lists, in trees and for policies made up:
// the same answers to the same attempts at the same files.
func TestGrantsAgreeWithGoLandlock(t *testing.T) {
	abi, err := ProbeLandlock()
	check(t, err)
	if abi < landlock.MinABI {
		t.Skipf("Landlock ABI %d", abi)
	}
	answers := map[string]int{}
	for seed := range uint64(25) {
		w := makeUp(seed)
		var got [2][]string
		for i, ours := range []bool{true, false} {
			root := image(t, w.tree...) // afresh: the attempts change it
			p, err := policy.Parse("policy.yaml", []byte(w.policy))
			check(t, err)
			tree, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root.fd))
			check(t, err)
			order := probing{Tree: tree, Paths: w.paths(), ByUs: ours, Handle: uint64(landlock.Handled(min(abi, 8))), Read: w.readable(tree), Write: w.writable(tree)}
			var ruleset *os.File
			if ours {
				ruleset = w.ruleset(t, abi, root, p)
			}
			got[i] = tryTree(t, order, ruleset)
		}
		for i := range max(len(got[0]), len(got[1])) {
			if got[0][i] != got[1][i] {
				t.Errorf("seed %d: ours: %s\n   go-landlock: %s\ntree %q\n%s", seed, got[0][i], got[1][i], w.tree, w.policy)
			}
			answers[got[0][i][strings.LastIndex(got[0][i], " ")+1:]]++
		}
	}
	if answers["ok"] < 100 || answers["EACCES"] < 100 {
		t.Errorf("the sample is poor: %v", answers)
	}
}

// world is a tree and a policy for it.
type world struct {
	tree                []string // for image
	policy              string
	readOnly, readWrite []string
	strict, workdir     bool
	cwd                 string
}

func makeUp(seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 1))
	w := &world{tree: []string{"sandbox/", "tmp/", "bin/sh*"}, strict: r.IntN(2) == 0, workdir: r.IntN(2) == 0, cwd: "/work/a"}
	tops, names := []string{"usr", "etc", "app", "root", "home", "work", "data", "run", "var"}, []string{"a", "b", "c"}
	w.tree = append(w.tree, "work/a/", "work/b/")
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	for range 12 {
		at := pick(tops)
		for range r.IntN(3) {
			at += "/" + pick(names)
		}
		w.tree = append(w.tree, at+pick([]string{"/", "/", "/file", "/tool*"}))
	}
	w.tree = append(w.tree, "link -> "+pick(tops), "app/link -> /"+pick(tops)+"/a", "data/link -> ../work")
	exist := w.paths()
	for range 1 + r.IntN(4) {
		w.readOnly = append(w.readOnly, pick(exist))
	}
	for range 1 + r.IntN(3) {
		w.readWrite = append(w.readWrite, pick(exist))
	}
	w.readWrite = slices.DeleteFunc(w.readWrite, func(p string) bool { return slices.Contains(w.readOnly, p) })
	slices.Sort(w.readOnly)
	slices.Sort(w.readWrite)
	w.readOnly, w.readWrite = slices.Compact(w.readOnly), slices.Compact(w.readWrite)
	mode := "auto"
	if w.strict {
		mode = "strict"
	}
	w.policy = fmt.Sprintf("filesystem:\n  read_only: [%s]\n  read_write: [%s]\n  include_workdir: %v\n  image: %s\n",
		strings.Join(w.readOnly, ", "), strings.Join(w.readWrite, ", "), w.workdir, mode)
	return w
}

// paths are all names in the tree, with the directories above them.
func (w *world) paths() []string {
	var all []string
	for _, e := range w.tree {
		name, _, _ := strings.Cut(e, " -> ")
		for at := "/" + strings.TrimRight(name, "/*"); at != "/"; at = path.Dir(at) {
			if !slices.Contains(all, at) {
				all = append(all, at)
			}
		}
	}
	slices.Sort(all)
	return all
}

// readable and writable are what the policy means, without asking the code that
// is tested: its lists, the image's directories, the working directory. A name
// with a symbolic link in it means nothing.
func (w *world) readable(tree string) []string {
	list := slices.Clone(w.readOnly)
	if !w.strict {
		entries, _ := os.ReadDir(tree)
		for _, e := range entries {
			if e.IsDir() && !slices.Contains([]string{"root", "home", "tmp", "run"}, e.Name()) {
				list = append(list, "/"+e.Name())
			}
		}
	}
	return slices.DeleteFunc(list, func(p string) bool { return hasLink(tree, p) })
}

func (w *world) writable(tree string) []string {
	list := slices.Clone(w.readWrite)
	keep := slices.ContainsFunc(w.readOnly, func(p string) bool { return w.cwd == p || strings.HasPrefix(w.cwd, p+"/") })
	if w.workdir && !keep {
		list = append(list, w.cwd)
	}
	return slices.DeleteFunc(list, func(p string) bool { return hasLink(tree, p) })
}

func hasLink(tree, name string) bool {
	for at := name; at != "/"; at = path.Dir(at) {
		if st, err := os.Lstat(filepath.Join(tree, at)); err != nil || st.Mode()&os.ModeSymlink != 0 {
			return true
		}
	}
	return false
}

// ruleset is what the runtime would fill for the policy.
func (w *world) ruleset(t *testing.T, abi int, root *containerRoot, p *policy.Policy) *os.File {
	t.Helper()
	spec := &oci.Spec{Process: &oci.Process{Cwd: w.cwd, Args: []string{"/bin/sh"}}, Root: &oci.Root{Path: "rootfs"}, Linux: &oci.Linux{}}
	top, err := root.topLevel()
	check(t, err)
	rules := specs.Rules(spec, p, specs.Host{LandlockABI: abi}, specs.Image{TopLevel: top, Program: "/bin/sh"})
	s := emptySeal(t, abi)
	t.Cleanup(s.Close)
	_, _, err = s.grant(root, rules)
	check(t, err)
	return s.ruleset
}

// tryTree runs the probing program and returns its answers.
func tryTree(t *testing.T, order probing, ruleset *os.File) []string {
	t.Helper()
	in, err := json.Marshal(order)
	check(t, err)
	cmd := exec.Command("/proc/self/exe", probeTree)
	cmd.Stdin = strings.NewReader(string(in))
	if ruleset != nil {
		cmd.ExtraFiles = []*os.File{ruleset}
	}
	var says strings.Builder
	cmd.Stderr = &says
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, says.String())
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// probe confines this process to what it was told and attempts everything.
func probe() error {
	goruntime.LockOSThread()
	var o probing
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return err
	}
	if err := o.restrict(); err != nil {
		return fmt.Errorf("cannot confine: %w", err)
	}
	if err := unix.Chroot(o.Tree); err != nil { // which Landlock does not mediate
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	for _, p := range o.Paths {
		for _, a := range attempts {
			answer := "ok"
			if err := a.try(p); err != nil {
				answer = unix.ErrnoName(err.(unix.Errno))
			}
			fmt.Println(a.name, p, answer)
		}
	}
	return nil
}

func (o *probing) restrict() error {
	if o.ByUs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		return ll.LandlockRestrictSelf(3, 0) // this thread alone attempts
	}
	const read = ll.AccessFSExecute | ll.AccessFSReadFile | ll.AccessFSReadDir
	var rules []golandlock.Rule
	add := func(p string, access golandlock.AccessFSSet) error {
		p = filepath.Join(o.Tree, p)
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		if !st.IsDir() {
			access &= ll.AccessFSExecute | ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate
		}
		rules = append(rules, golandlock.PathAccess(access&golandlock.AccessFSSet(o.Handle), p))
		return nil
	}
	for _, p := range o.Read {
		if err := add(p, read); err != nil {
			return err
		}
	}
	for _, p := range o.Write {
		if err := add(p, read|ll.AccessFSWriteFile|ll.AccessFSRemoveDir|ll.AccessFSRemoveFile|ll.AccessFSMakeDir|ll.AccessFSMakeReg|ll.AccessFSMakeSock|
			ll.AccessFSMakeFifo|ll.AccessFSMakeSym|ll.AccessFSRefer|ll.AccessFSTruncate); err != nil {
			return err
		}
	}
	config, err := golandlock.NewConfig(golandlock.AccessFSSet(o.Handle))
	if err != nil {
		return err
	}
	return config.RestrictPaths(rules...)
}

// attempts are made at every path, each leaving the tree as it was as far as it
// succeeds.
var attempts = []struct {
	name string
	try  func(p string) error
}{
	{"read", func(p string) error { return open(p, unix.O_RDONLY) }},
	{"write", func(p string) error { return open(p, unix.O_WRONLY) }},
	{"empty", func(p string) error { return unix.Truncate(p, 0) }},
	{"execute", func(p string) error {
		if err := unix.Exec(p, []string{p}, nil); err != unix.ENOEXEC { // an empty file: it was let through
			return err
		}
		return nil
	}},
	{"create", func(p string) error {
		if err := open(p+"/new", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL); err != nil {
			return err
		}
		return unix.Unlink(p + "/new")
	}},
	{"mkdir", func(p string) error {
		if err := unix.Mkdir(p+"/new", 0o755); err != nil {
			return err
		}
		return unix.Rmdir(p + "/new")
	}},
	{"fifo", func(p string) error {
		if err := unix.Mkfifo(p+"/new", 0o644); err != nil {
			return err
		}
		return unix.Unlink(p + "/new")
	}},
	{"device", func(p string) error { return unix.Mknod(p+"/new", unix.S_IFCHR, int(unix.Mkdev(1, 3))) }},
	{"symlink", func(p string) error {
		if err := unix.Symlink("x", p+"/new"); err != nil {
			return err
		}
		return unix.Unlink(p + "/new")
	}},
	{"rename", func(p string) error {
		if err := unix.Rename(p, p+".moved"); err != nil {
			return err
		}
		return unix.Rename(p+".moved", p)
	}},
	{"move", func(p string) error { // to another directory and back
		if err := unix.Rename(p, "/work/b/moved"); err != nil {
			return err
		}
		return unix.Rename("/work/b/moved", p)
	}},
	{"link", func(p string) error {
		if err := unix.Link(p, "/work/b/linked"); err != nil {
			return err
		}
		return unix.Unlink("/work/b/linked")
	}},
}

func open(p string, flags int) error {
	fd, err := unix.Open(p, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

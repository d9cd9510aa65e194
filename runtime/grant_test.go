package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/specs/landlock"
)

// image makes a root file system: "dir/" is a directory, "a -> b" a link,
// "file*" an executable, "file" none.
func image(t *testing.T, entries ...string) *containerRoot {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run as root")
		}
		t.Skip("needs root to own what a container's user owns")
	}
	dir := t.TempDir()
	// t.TempDir is closed to others; a container's root is not.
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range entries {
		if from, to, ok := strings.Cut(e, " -> "); ok {
			check(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, from)), 0o755))
			check(t, os.Symlink(to, filepath.Join(dir, from)))
			continue
		}
		name := filepath.Join(dir, strings.TrimSuffix(e, "*"))
		if strings.HasSuffix(e, "/") {
			check(t, os.MkdirAll(name, 0o755))
			continue
		}
		check(t, os.MkdirAll(filepath.Dir(name), 0o755))
		mode := os.FileMode(0o644)
		if strings.HasSuffix(e, "*") {
			mode = 0o755
		}
		check(t, os.WriteFile(name, nil, mode))
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	check(t, err)
	root := &containerRoot{fd: fd, uid: 1000, gid: 1000}
	t.Cleanup(root.Close)
	return root
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A rule names what it names: a link in the image, missing paths and files
// where directories were meant grant nothing more.
func TestGrant(t *testing.T) {
	abi, err := ProbeLandlock()
	check(t, err)
	if abi < landlock.MinABI {
		t.Skipf("Landlock ABI %d", abi)
	}
	for _, test := range []struct {
		name    string
		image   []string
		rules   []landlock.Rule
		granted string // "name=class ..."
		note    string
		fault   string
	}{
		{"a directory", []string{"usr/"}, []landlock.Rule{{Path: "/usr", Access: landlock.ReadOnly}}, "/usr=read_only", "", ""},
		{"a file gets what a file can have", []string{"etc/x"}, []landlock.Rule{{Path: "/etc/x", Access: landlock.ReadOnly}}, "/etc/x={execute,read_file}", "", ""},
		{"a link grants nothing", []string{"secret/", "work -> /secret"},
			[]landlock.Rule{{Path: "/work", Access: landlock.ReadWrite, Why: "policy.yaml:3"}}, "", "/work: it is a symbolic link in the image and grants nothing", ""},
		{"nor does one above", []string{"secret/deep/", "work -> secret"},
			[]landlock.Rule{{Path: "/work/deep", Access: landlock.ReadWrite, Why: "policy.yaml:3"}}, "", "/work/deep: it is a symbolic link", ""},
		{"nor one that leads out", []string{"work -> ../../../../etc"},
			[]landlock.Rule{{Path: "/work", Access: landlock.ReadWrite, Why: "policy.yaml:3"}}, "", "/work: it is a symbolic link", ""},
		{"a link to what is granted by its name is no matter", []string{"usr/bin/", "bin -> usr/bin"},
			[]landlock.Rule{{Path: "/bin", Access: landlock.ReadOnly, Why: "policy.yaml:3"}, {Path: "/usr", Access: landlock.ReadOnly}}, "/usr=read_only", "", ""},
		{"built-in paths may be missing", nil, []landlock.Rule{{Path: "/opt", Access: landlock.ReadOnly, Optional: true}}, "", "", ""},
		{"a policy's may not", nil, []landlock.Rule{{Path: "/opt", Access: landlock.ReadOnly, Why: "policy.yaml:3"}}, "", "", "the image has no such file"},
		{"writable ones are made", nil, []landlock.Rule{{Path: "/work/deep", Access: landlock.ReadWrite, Make: true}}, "/work/deep=read_write", "", ""},
		{"but not through a link", []string{"secret/", "work -> secret"}, []landlock.Rule{{Path: "/work/deep", Access: landlock.ReadWrite, Make: true, Why: "policy.yaml:3"}},
			"", "/work/deep: it is a symbolic link", ""},
		{"a volume must be one", []string{"data/"}, []landlock.Rule{{Path: "/data", Access: landlock.ReadWrite, Mount: true}}, "", "/data: it is not the root of a volume", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := image(t, test.image...)
			s := emptySeal(t, abi)
			defer s.Close()
			granted, notes, err := s.grant(root, test.rules)
			if test.fault != "" {
				if err == nil || !strings.Contains(err.Error(), test.fault) {
					t.Fatalf("error %v, want %q in it", err, test.fault)
				}
				return
			}
			check(t, err)
			var got []string
			for _, g := range granted {
				got = append(got, g.Path+"="+(g.Access|test.rules[0].Access&^landlock.Handled(abi)).String())
				if g.Ino == 0 {
					t.Errorf("%s has no identity", g.Path)
				}
			}
			if s := strings.Join(got, " "); s != test.granted {
				t.Errorf("granted %q, want %q", s, test.granted)
			}
			if s := strings.Join(notes, "; "); !strings.Contains(s, test.note) || (test.note == "") != (s == "") {
				t.Errorf("notes %q, want %q", s, test.note)
			}
		})
	}
}

// What is made belongs to the container's user.
func TestMakeDirOwner(t *testing.T) {
	root := image(t)
	fd, err := root.makeDir("/work/deep")
	check(t, err)
	defer unix.Close(fd)
	var st unix.Stat_t
	check(t, unix.Fstat(fd, &st))
	if st.Uid != 1000 || st.Gid != 1000 {
		t.Errorf("owner %d:%d, want 1000:1000", st.Uid, st.Gid)
	}
}

// The program is looked up as runc does, as the container's user, and told in
// runc's words: Docker takes its exit codes 126 and 127 from them.
func TestLookPath(t *testing.T) {
	root := image(t, "bin/sh*", "usr/bin/tool*", "etc/passwd", "tmp/", "bin/link -> ../usr/bin/tool", "work/run*", "root/own*")
	check(t, unix.Fchmodat(root.fd, "root", 0o700, 0))
	for _, test := range []struct {
		name, arg, path, cwd string
		uid                  int
		caps                 []string
		found, fault         string
	}{
		{"by name", "sh", "/usr/bin:/bin", "/", 0, nil, "/bin/sh", ""},
		{"through a link", "link", "/bin", "/", 0, nil, "/bin/link", ""},
		{"by path", "/usr/bin/tool", "", "/", 0, nil, "/usr/bin/tool", ""},
		{"relative to the working directory", "./run", "", "/work", 0, nil, "./run", ""},
		{"without PATH", "tool", "-", "/", 0, nil, "/usr/bin/tool", ""},
		{"not found", "nothing", "/bin", "/", 0, nil, "", `exec: "nothing": executable file not found in $PATH`},
		{"no such path", "/bin/nothing", "/bin", "/", 0, nil, "", `exec: "/bin/nothing": stat /bin/nothing: no such file or directory`},
		{"not executable", "/etc/passwd", "/bin", "/", 0, nil, "", `exec: "/etc/passwd": permission denied`},
		{"a directory", "/tmp", "/bin", "/", 0, nil, "", `exec: "/tmp": is a directory`},
		{"in the working directory by PATH", "run", ".", "/work", 0, nil, "", `cannot run executable found relative to current directory`},
		{"closed to the user", "/root/own", "/bin", "/", 1000, nil, "", `exec: "/root/own": permission denied`},
		{"open to its owner", "/root/own", "/bin", "/", 0, nil, "/root/own", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			root.uid, root.gid = test.uid, test.uid
			p := &oci.Process{Args: []string{test.arg}, Cwd: test.cwd, User: oci.User{UID: uint32(test.uid), GID: uint32(test.uid)},
				Capabilities: &oci.LinuxCapabilities{Effective: test.caps}}
			if test.path != "-" {
				p.Env = []string{"PATH=/nowhere", "PATH=" + test.path}
			}
			found, err := root.lookPath(p)
			if found != test.found || (err == nil) != (test.fault == "") || err != nil && !strings.Contains(err.Error(), test.fault) {
				t.Errorf("got %q, %v; want %q, %q", found, err, test.found, test.fault)
			}
		})
	}
	if os.Geteuid() != 0 {
		t.Error("the search changed our own user")
	}
}

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"nemoclaw/integration/escape"
)

// What images were made of to lead a runtime astray that sets up their root as
// the host's. Each row prepares an image and perhaps a spec; then the runtime
// refuses it, or runs it confined. Either way a directory of the host's, which
// the image's links lead to, is as it was. The first row is the control: nothing
// is prepared, and it runs.
func TestEscapesFromTheRuntime(t *testing.T) {
	link := func(name string, to func(*box) string) func(*box) {
		return func(b *box) {
			b.must(os.RemoveAll(filepath.Join(b.rootfs(), name)))
			b.must(os.Symlink(to(b), filepath.Join(b.rootfs(), name)))
		}
	}
	host := func(b *box) string { return b.path("host") }
	inside := func(name string) func(*box) string { return func(*box) string { return name } }
	without := func(dest string) func(*box) {
		return func(b *box) {
			var kept []oci.Mount
			for _, m := range b.spec.Mounts {
				if m.Destination != dest && !strings.HasPrefix(m.Destination, dest+"/") {
					kept = append(kept, m)
				}
			}
			b.spec.Mounts = kept
		}
	}
	mount := func(kind, dest string) func(*box) {
		return func(b *box) {
			b.mkdir("volume")
			m := oci.Mount{Type: kind, Source: "tmpfs", Destination: dest}
			if kind == "bind" {
				m.Source, m.Options = b.path("volume"), []string{"rbind"}
			}
			b.spec.Mounts = append(b.spec.Mounts, m)
		}
	}
	for _, test := range []struct {
		name, source string
		prepare      []func(*box)
	}{
		{"nothing", "the control", nil},
		{"devices are the host's, by a link", "CVE-2026-41579", []func(*box){link("dev", host)}},
		{"devices are the host's, and nothing is mounted there", "CVE-2026-41579", []func(*box){link("dev", host), without("/dev")}},
		{"devices are the root's", "CVE-2026-41579", []func(*box){link("dev", inside("/")), without("/dev")}},
		{"the null device is the kernel's setting", "CVE-2025-31133", []func(*box){link("dev/null", inside("/proc/sys/kernel/core_pattern")), without("/dev")}},
		{"the null device is the host's file", "CVE-2025-31133", []func(*box){link("dev/null", func(b *box) string { return b.path("host/ptmx") }), without("/dev")}},
		{"the console is the kernel's setting", "CVE-2025-52565", []func(*box){link("dev/console", inside("/proc/sys/kernel/core_pattern")), without("/dev")}},
		{"terminals are the kernel's settings", "CVE-2025-52565", []func(*box){link("dev/pts", inside("/proc/sys")), without("/dev")}},
		{"processes are a directory of the image's", "CVE-2019-19921", []func(*box){link("proc", inside("/opt/app"))}},
		{"processes are the host's directory", "CVE-2023-27561", []func(*box){link("proc", host)}},
		{"processes are a volume", "CVE-2025-52881, CVE-2019-16884", []func(*box){mount("bind", "/proc")}},
		{"attributes of processes are scratch", "CVE-2025-52881", []func(*box){mount("tmpfs", "/proc/self/attr")}},
		{"attributes of processes are scratch, by a link", "CVE-2025-52881", []func(*box){link("attr", inside("/proc/self/attr")), mount("tmpfs", "/attr")}},
		{"the kernel is the host's directory", "CVE-2023-28642", []func(*box){link("sys", host)}},
		{"a volume below a link to the host", "CVE-2024-45310", []func(*box){link("vol", host), mount("bind", "/vol/new")}},
		{"a volume below links and dots", "CVE-2021-30465", []func(*box){link("vol", func(b *box) string { return "../../../../../.." + b.path("host") }), mount("bind", "/vol/new")}},
		{"scratch below a link to the host", "CVE-2024-45310", []func(*box){link("vol", host), mount("tmpfs", "/vol/new")}},
		{"the working directory below a link to the host", "CVE-2024-21626's class", []func(*box){link("vol", host), func(b *box) { b.spec.Process.Cwd = "/vol/new" }}},
		{"the writable place is the host's", "CVE-2024-45310's class", []func(*box){link("sandbox", host)}},
		{"the name servers are the host's file", "CVE-2024-45310's class", []func(*box){link("etc/resolv.conf", func(b *box) string { return b.path("host/resolv.conf") })}},
		{"the users are the host's file", "CVE-2018-15664's class", []func(*box){link("etc/passwd", inside("/proc/self/environ"))}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBox(t)
			b.must(os.MkdirAll(filepath.Join(b.rootfs(), "dev/pts"), 0o777))
			b.mkdir("host")
			b.write("host/ptmx", "the host's")
			for _, change := range test.prepare {
				change(b)
			}
			b.spec.Process.Args = []string{"/bin/probe", "serve"}
			b.saveSpec()
			verbs := []string{"read /root/secret", "openw /proc/sys/kernel/core_pattern", "openw /dev/null", "read " + b.path("host/ptmx"), "status CapInh", "read /proc/self/comm"}
			got := b.nemoclaw(strings.NewReader(strings.Join(verbs, "\n")+"\n"), "run", "--bundle", b.path("bundle"), b.id)
			switch answers := strings.Split(got.stdout, "\n"); {
			case got.code != 0 && got.stdout == "" && test.prepare != nil:
				t.Logf("refused (%s): %.200s", test.source, got.stderr)
			case len(answers) != len(verbs)+1 || strings.Contains(got.stdout, "the host's"):
				t.Errorf("%s: %s", test.source, got)
			default:
				for i, want := range []string{"EACCES", "EACCES|EROFS", "ok|EACCES|ENOENT|ENXIO|EROFS", "", // what lies there in the image
					"ok 0000000000000000", "ok probe"} {
					if !escape.Fits(answers[i], want) {
						t.Errorf("%s: %s: %s, want %s", test.source, verbs[i], answers[i], want)
					}
				}
			}
			text, err := os.ReadFile(b.path("host/ptmx"))
			entries, derr := os.ReadDir(b.path("host"))
			if err != nil || derr != nil || string(text) != "the host's" || len(entries) != 1 {
				t.Errorf("%s: the host's directory holds %v, and its file %q (%v)", test.source, entries, text, err)
			}
		})
	}
}

// A working directory that is one of the runtime's own descriptors leads to the
// host's root, if one was left open (CVE-2024-21626): at create, and at exec.
func TestEscapeByTheRuntimesDescriptors(t *testing.T) {
	const shadow = "../../../../../../../etc/shadow" // the image has none
	if _, err := os.Stat("/etc/shadow"); err != nil {
		lacking(t, "the host has no /etc/shadow")
	}
	b := newBox(t)
	for fd := 3; fd <= 16; fd++ {
		b.spec.Process.Cwd = fmt.Sprintf("/proc/self/fd/%d", fd)
		if got := b.run("/bin/probe", "read", shadow); got.code == 0 || strings.HasPrefix(got.stdout, "ok") {
			t.Errorf("%s: %s", b.spec.Process.Cwd, got)
		}
	}
	b.spec.Process.Cwd = "/"
	b.spec.Process.Args = []string{"/bin/probe", "serve"}
	defer b.up().end()
	for fd := 3; fd <= 16; fd++ {
		cwd := fmt.Sprintf("/proc/self/fd/%d", fd)
		if got := b.execute("--cwd", cwd, b.id, "/bin/probe", "read", shadow); got.code == 0 || strings.HasPrefix(got.stdout, "ok") {
			t.Errorf("exec in %s: %s", cwd, got)
		}
	}
	if got := b.execute("--cwd", "/usr/share", b.id, "/bin/probe", "read", "text"); got.stdout != "ok public\n" {
		t.Errorf("the control: %s", got)
	}
}

// A program of the image whose interpreter is the process itself becomes the
// launcher once more, or the runtime (CVE-2019-5736): it is told no, in the first
// process and in exec, and neither program was changed.
func TestEscapeByTheLauncherItself(t *testing.T) {
	b := newBox(t)
	for name, interpreter := range map[string]string{"self": "/proc/self/exe", "one": "/proc/1/exe", "three": "/proc/self/fd/3", "four": "/proc/self/fd/4"} {
		b.lay(map[string]string{"bin/" + name: "#!" + interpreter + "\n"})
	}
	before, err := os.Stat(program(t, "nemoclaw"))
	b.must(err)
	for _, name := range []string{"self", "one", "three", "four"} {
		if got := b.run("/bin/"+name, "cat", "/root/secret"); got.code == 0 || got.stdout != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
	b.spec.Process.Args = []string{"/bin/probe", "serve"}
	defer b.up().end()
	for _, name := range []string{"self", "three", "four"} {
		if got := b.execute(b.id, "/bin/"+name, "cat", "/root/secret"); got.code == 0 || got.stdout != "" {
			t.Errorf("exec of %s: %s", name, got)
		}
	}
	after, err := os.Stat(program(t, "nemoclaw"))
	b.must(err)
	if !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size() {
		t.Error("the runtime's program was changed")
	}
}

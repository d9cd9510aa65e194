package engines

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"nemoclaw/integration/escape"
)

// Every third of the ways out that are tried under nemoclaw alone is tried under
// Docker too: as the container's program and through docker exec, as root and as
// uid 1000.
func TestEscapes(t *testing.T) {
	docker(t, "version")
	if goruntime.GOARCH != "amd64" {
		t.Skip("numbers of amd64")
	}
	imported := dockerd.client("import", "-", "escape")
	imported.Stdin = bytes.NewReader(escapeImage(t))
	if err := quietly(imported); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"0", "1000"} {
		t.Run("run as "+user, func(t *testing.T) {
			tryThird(t, "main", "", dockerd.client("run", "--rm", "-i", "--runtime=nemoclaw", "--user="+user, "escape", "/bin/probe", "serve"))
		})
		t.Run("exec as "+user, func(t *testing.T) {
			name := "escape-" + user
			removed(t, name)
			must(t, "run", "-d", "-i", "--runtime=nemoclaw", "--user="+user, "--name="+name, "escape", "/bin/probe", "serve")
			tryThird(t, "exec", "1", dockerd.client("exec", "-i", name, "/bin/probe", "serve"))
		})
	}
}

// tryThird asks a probe about every third attempt, and about what must work
// beside it. Without another process in the container, what needs one is left
// out.
func tryThird(t *testing.T, who, other string, probe *exec.Cmd) {
	t.Helper()
	type question struct {
		name, want string
		verbs      []string
	}
	var ask []question
	add := func(name, do, want string, n int) {
		if other != "" || !strings.Contains(do, "OTHER") {
			ask = append(ask, question{name + ": " + do, want, escape.Verbs(do, n, who, other)})
		}
	}
	for _, g := range escape.Groups {
		for _, control := range g.Controls {
			add(g.Name+": beside", control, "ok", 0)
		}
	}
	escape.Each(func(n int, g escape.Group, a escape.Attempt) {
		if n%3 != 0 {
			return
		}
		add(g.Name+": "+a.Name, a.Do, a.Want, n)
		if beside, ok := strings.CutPrefix(a.Proof, "+ "); ok {
			add(g.Name+": beside "+a.Name, beside, "ok", n)
		}
	})
	var in strings.Builder
	count := 0
	for _, q := range ask {
		for _, verb := range q.verbs {
			in.WriteString(verb + "\n")
			count++
		}
	}
	probe.Stdin = strings.NewReader(in.String())
	var complaints strings.Builder
	probe.Stderr = &complaints
	out, err := probe.Output()
	answers := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if err != nil || len(answers) != count {
		t.Fatalf("the probe gave %d answers to %d verbs (%v): %s", len(answers), count, err, &complaints)
	}
	for _, q := range ask {
		first := slices.IndexFunc(answers[:len(q.verbs)], func(a string) bool { return !strings.HasPrefix(a, "ok") })
		if first < 0 {
			first = len(q.verbs) - 1
		}
		if !escape.Fits(answers[first], q.want) {
			t.Errorf("%s: %s, want %s", q.name, answers[first], q.want)
		}
		answers = answers[len(q.verbs):]
	}
}

// escapeImage is the root file system that the attempts are about, as a tar
// archive: the busybox image with more in it.
func escapeImage(t *testing.T) []byte {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	probe := filepath.Join(t.TempDir(), "probe")
	build := exec.Command("go", "build", "-o", probe, "./integration/probe")
	build.Dir, build.Env = repository(), append(os.Environ(), "CGO_ENABLED=0")
	must(quietly(build))
	attacker, err := os.ReadFile(probe)
	must(err)
	here, err := os.Readlink("/proc/self/ns/mnt")
	must(err)

	var image bytes.Buffer
	w := tar.NewWriter(&image)
	write := func(h *tar.Header, text []byte) {
		t.Helper()
		h.Size = int64(len(text))
		must(w.WriteHeader(h))
		_, err := w.Write(text)
		must(err)
	}
	busybox := readImage(t, filepath.Join(os.Getenv(cacheEnv), "busybox.tar"), "bin/busybox")
	files := escape.Files()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for dir := filepath.Dir(strings.TrimSuffix(name, "/")); dir != "."; dir = filepath.Dir(dir) {
			if _, ok := files[dir+"/"]; !ok {
				files[dir+"/"] = ""
			}
		}
	}
	for _, dir := range []string{"bin/", "bin/suid/", "root/bin/", "tmp/"} {
		files[dir] = ""
	}
	for _, name := range slices.Sorted(maps.Keys(files)) { // a directory before what is in it
		h := &tar.Header{Name: name, Mode: 0o777, Typeflag: tar.TypeReg}
		if strings.HasSuffix(name, "/") {
			h.Typeflag = tar.TypeDir
		}
		write(h, []byte(files[name]))
	}
	for _, name := range escape.Programs {
		h := &tar.Header{Name: name, Mode: 0o777, Typeflag: tar.TypeReg}
		if name == escape.Setuid {
			h.Mode |= 0o4000
		}
		write(h, busybox)
	}
	for _, name := range append([]string{"bin/probe"}, escape.Probes...) {
		write(&tar.Header{Name: name, Mode: 0o777, Typeflag: tar.TypeReg}, attacker)
	}
	for name, to := range escape.Links {
		write(&tar.Header{Name: name, Linkname: to, Mode: 0o777, Typeflag: tar.TypeSymlink}, nil)
	}
	write(&tar.Header{Name: ".nemoclaw-test-root", Linkname: here, Mode: 0o777, Typeflag: tar.TypeSymlink}, nil)
	must(w.Close())
	return image.Bytes()
}

// readImage returns one file of an image's layer.
func readImage(t *testing.T, layer, name string) []byte {
	t.Helper()
	f, err := os.Open(layer)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			t.Fatalf("%s has no %s", layer, name)
		} else if err != nil {
			t.Fatal(err)
		}
		if filepath.Clean(h.Name) == name {
			text, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
	}
}

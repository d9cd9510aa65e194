package specs

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/tools/txtar"

	"nemoclaw/specs/policy"
)

var update = flag.Bool("update", false, "rewrite the golden parts of testdata")

// A case is one file: config.json, a policy, what is known of the host, and
// what came of it: the edits in words, the spec afterwards, the rules.
func TestConfine(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases: ", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runCase(t, ar)
			if *update {
				if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			for _, f := range got.Files {
				if want := part(ar, f.Name); !bytes.Equal(want, f.Data) {
					t.Errorf("%s is not as expected (make golden rewrites it):\ngot:\n%swant:\n%s", f.Name, f.Data, want)
				}
			}
		})
	}
}

func part(ar *txtar.Archive, name string) []byte {
	for _, f := range ar.Files {
		if f.Name == name {
			return f.Data
		}
	}
	return nil
}

// runCase keeps the inputs of ar and makes the outputs anew.
func runCase(t *testing.T, ar *txtar.Archive) *txtar.Archive {
	t.Helper()
	out := &txtar.Archive{Comment: ar.Comment}
	for _, name := range []string{"config.json", "policy.yaml", "host.json", "image.json"} {
		if data := part(ar, name); data != nil {
			out.Files = append(out.Files, txtar.File{Name: name, Data: data})
		}
	}
	add := func(name, text string) {
		out.Files = append(out.Files, txtar.File{Name: name, Data: []byte(text)})
	}
	var spec oci.Spec
	decode(t, part(ar, "config.json"), &spec)
	host := Host{LandlockABI: 7, RunDir: "/run/nemoclaw", LogDir: "/var/log/nemoclaw", ResolvConf: "/run/nemoclaw/web/resolv.conf"}
	decode(t, part(ar, "host.json"), &host)
	p := policy.Default()
	if src := part(ar, "policy.yaml"); src != nil {
		var err error
		if p, err = policy.Parse("policy.yaml", src); err != nil {
			t.Fatal(err)
		}
	}

	if err := Refuse(&spec, p, host); err != nil {
		var text strings.Builder
		for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
			r, _ := errors.AsType[*Refusal](e)
			fmt.Fprintf(&text, "%s\n", r.Why)
			if r.Hint != "" {
				fmt.Fprintf(&text, "  hint: %s\n", r.Hint)
			}
		}
		add("refused", text.String())
		return out
	}
	before := *spec.Process
	before.Capabilities = clone(spec.Process.Capabilities)
	edits, denials, err := Confine(&spec, p, host)
	if err != nil {
		add("error", err.Error()+"\n")
		return out
	}
	profile := spec.Linux.Seccomp
	Apply(&spec, edits)
	neverLooser(t, &before, spec.Process)

	var again []string
	for _, d := range denials {
		if strings.HasPrefix(d.Why, "the engine's profile") {
			again = append(again, d.Call)
		}
	}
	add("edits", strings.Join(append(Say(edits), ""), "\n"))
	if len(again) > 0 {
		add("denied again", strings.Join(again, " ")+"\n")
	}
	if profile == nil && spec.Linux.Seccomp != nil {
		t.Error("libcontainer would compile a profile that the launcher brings")
	}
	add("want.json", indent(t, spec))

	image := Image{TopLevel: []string{"app", "bin", "etc", "home", "root", "tmp", "usr"}, Program: "/bin/sh"}
	decode(t, part(ar, "image.json"), &image)
	var rules strings.Builder
	all := Rules(&spec, p, host, image)
	for _, r := range all {
		if r.Why != "built-in" {
			fmt.Fprintln(&rules, r)
		}
	}
	add("rules", rules.String())
	if carves := Carves(p, all); len(carves) > 0 {
		var mounts strings.Builder
		for _, c := range carves {
			fmt.Fprintln(&mounts, c)
		}
		add("mounts", mounts.String())
	}
	return out
}

// neverLooser is law 2 for what edits touch of a process.
func neverLooser(t *testing.T, before, after *oci.Process) {
	t.Helper()
	if !after.NoNewPrivileges {
		t.Error("no_new_privs is not set")
	}
	if before.Capabilities == nil {
		if after.Capabilities != nil {
			t.Error("capabilities were added")
		}
		return
	}
	sets := func(c *oci.LinuxCapabilities) [][]string {
		return [][]string{c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient}
	}
	was := sets(before.Capabilities)
	for i, now := range sets(after.Capabilities) {
		for _, name := range now {
			if !slices.Contains(was[i], name) {
				t.Errorf("%s was added", name)
			}
			if !slices.Contains(Ceiling, name) {
				t.Errorf("%s is above the ceiling", name)
			}
		}
	}
}

func clone(c *oci.LinuxCapabilities) *oci.LinuxCapabilities {
	if c == nil {
		return nil
	}
	d := *c
	return &d
}

func decode(t *testing.T, data []byte, v any) {
	t.Helper()
	if data == nil {
		return
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

func indent(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

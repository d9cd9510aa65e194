package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// Every policy among the examples is valid, means what it says, and confines a
// container.
func TestExamplePolicies(t *testing.T) {
	allows := map[string][]string{
		"policy.yaml": {"allow api.example.com:443", "allow *.cdn.example.com:443,8000-8100", "allow db.corp.example:5432",
			"allow git.example.org:22", "allow upload.example.org:443", "allow *.docs.example.org:443", "deny uploads.cdn.example.com:*"},
		"agent.yaml": {"allow api.anthropic.com:443", "allow github.com:443", "allow api.github.com:443", "allow registry.example.org:443"},
	}
	writable := map[string]string{"policy.yaml": "/data", "agent.yaml": "/workspace"}
	files, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(files) != len(allows) {
		t.Fatalf("%v: examples %v, want those of %v", err, files, allows)
	}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			checked := b.nemoclaw(nil, "check", file)
			if got := rulesOf(checked.stdout, name); checked.code != 0 || got != strings.Join(allows[name], "\n") {
				t.Errorf("%s\ntold these rules\n%s\nwant\n%s", checked, got, strings.Join(allows[name], "\n"))
			}
			text, err := os.ReadFile(file)
			b.must(err)
			b.policy(string(text))
			answers := b.ask("read /root/secret", "create "+writable[name]+"/file")
			if answers[0] != "EACCES" || answers[1] != "ok" {
				t.Errorf("/root/secret and %s answer %q, want EACCES and ok", writable[name], answers)
			}
		})
	}
}

// rulesOf returns the rules of egress that nemoclaw check told, without their
// places.
func rulesOf(told, name string) string {
	var rules []string
	_, egress, _ := strings.Cut(told, "\negress: ")
	for line := range strings.Lines(egress) {
		rule, _, ok := strings.Cut(line, " ("+name+":")
		if ok {
			rules = append(rules, strings.Join(strings.Fields(rule), " "))
		}
	}
	return strings.Join(rules, "\n")
}

// Docker's configuration names the program where "make install" puts it, and
// policies that are among the examples.
func TestExampleDocker(t *testing.T) {
	dry, err := exec.Command("make", "-C", "..", "--dry-run", "--no-print-directory", "install").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../examples/docker/daemon.json")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Runtimes map[string]struct {
			Path        string
			RuntimeArgs []string
		}
	}
	dec := json.NewDecoder(strings.NewReader(string(text)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&config); err != nil {
		t.Fatal(err)
	}
	if len(config.Runtimes) == 0 {
		t.Error("it names no runtime")
	}
	for name, runtime := range config.Runtimes {
		if filepath.Base(runtime.Path) != "nemoclaw" || !strings.Contains(string(dry), " "+filepath.Dir(runtime.Path)+"\n") {
			t.Errorf("%s: nothing is installed at %s", name, runtime.Path)
		}
		for _, arg := range runtime.RuntimeArgs {
			policy, ok := strings.CutPrefix(arg, "--policy=")
			if _, err := os.Stat("../examples/" + policy + ".yaml"); !ok || err != nil {
				t.Errorf("%s: %s names no policy among the examples", name, arg)
			}
		}
	}
}

// Kubernetes' class names the runtime that containerd's configuration has, and
// that is the program where "make install" puts it.
func TestExampleKubernetes(t *testing.T) {
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join("../examples", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	var class struct {
		Kind     string
		Metadata struct{ Name string }
		Handler  string
	}
	var pod struct {
		Kind string
		Spec struct {
			RuntimeClassName string `yaml:"runtimeClassName"`
		}
	}
	if err := yaml.Unmarshal([]byte(read("kubernetes/runtimeclass.yaml")), &class); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(read("kubernetes/pod.yaml")), &pod); err != nil {
		t.Fatal(err)
	}
	if class.Kind != "RuntimeClass" || pod.Kind != "Pod" || pod.Spec.RuntimeClassName != class.Metadata.Name {
		t.Errorf("the pod %+v is not of the class %+v", pod, class)
	}
	config := read("containerd/config.toml")
	for _, want := range []string{
		"containerd.runtimes." + class.Handler + "]", "containerd.runtimes." + class.Handler + ".options]",
		`runtime_type = "io.containerd.runc.v2"`, `BinaryName = "/usr/local/bin/nemoclaw"`,
	} {
		if !strings.Contains(config, want) {
			t.Errorf("containerd's configuration lacks %s", want)
		}
	}
}

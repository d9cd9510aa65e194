package audit

import (
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite FIELDS.md")

// The document is made of the tables.
func TestFields(t *testing.T) {
	const file = "FIELDS.md"
	if *update {
		must(t, os.WriteFile(file, []byte(Markdown()), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if Markdown() != string(want) {
		t.Errorf("%s is not what the tables say: make golden", file)
	}
}

// Every attribute says where it comes from, or why there is none; what is
// required is written, and every object is one of the tables'.
func TestTables(t *testing.T) {
	check := func(where string, attributes []Attribute) {
		for i, a := range attributes {
			if a.Name == "" || a.Need == "" || a.Type == "" || a.Ours == "" {
				t.Errorf("%s: %+v", where, a)
			}
			if slices.ContainsFunc(attributes[:i], func(b Attribute) bool { return b.Name == a.Name }) {
				t.Errorf("%s has %s twice", where, a.Name)
			}
			if a.Need == Required && a.absent() {
				t.Errorf("%s: %s is required and not written", where, a.Name)
			}
			if a.Object != "" && !slices.ContainsFunc(Shapes(), func(o Shape) bool { return o.Name == a.Object }) {
				t.Errorf("%s: %s is an unknown %s", where, a.Name, a.Object)
			}
		}
	}
	for _, c := range Classes() {
		check(c.Name, c.Attributes)
	}
	for _, o := range Shapes() {
		check(o.Name, o.Attributes)
	}
}

// A line as it should be conforms, with all that it may have; and whatever is
// wrong with it is found.
func TestConforms(t *testing.T) {
	n := NewNetwork("web", ActivityRefuse)
	n.ActionID, n.DispositionID, n.StartTime, n.Duration, n.Count = 2, Blocked, 1, 1, 2
	n.Src, n.Dst = &Endpoint{IP: "198.18.0.2", Port: 40000}, &Endpoint{Hostname: "example.org", IP: "192.0.2.1", Port: 443}
	n.Connection, n.Rule, n.Traffic = &Connection{"udp", 17, Outbound}, &Rule{"built-in"}, &Traffic{1, 2, 3, 4}
	n.Actor = &Actor{Process: Process{PID: 12, Name: "curl", File: NewFile("/usr/bin/curl"), User: &User{"0"}, Container: &Container{"web"}, Ancestry: []Ancestor{{"/bin/sh"}}}}
	file, call := NewFileDenial("web", ActivityRead), NewKernelDenial("web", ActivityInvoke)
	file.File, file.Actor = &Object{Name: "secret", Path: "/root/secret"}, n.Actor
	call.Kernel, call.Actor = &Kernel{"mount", 2, "mount"}, &Actor{AppName: "unknown"}
	for _, e := range []Entry{n, file, call, NewChange("web", KindNote, "hello")} {
		line, err := encode(nil, e, 7, genesis, time.Now())
		must(t, err)
		if faults := Conforms(line); len(faults) > 0 {
			t.Errorf("%s: %q", line, faults)
		}
	}

	line, err := encode(nil, n, 7, genesis, time.Now())
	must(t, err)
	for _, c := range []struct {
		name   string
		change func(l map[string]any)
		want   string
	}{
		{"no time", func(l map[string]any) { delete(l, "time") }, "time: it is required"},
		{"a time of text", func(l map[string]any) { l["time"] = "now" }, "time: now is no timestamp"},
		{"half a millisecond", func(l map[string]any) { l["duration"] = 0.5 }, "duration: 0.5 is no long"},
		{"another type", func(l map[string]any) { l["type_uid"] = 400101 }, "type_uid 400101 are not those"},
		{"another category", func(l map[string]any) { l["category_uid"] = 1 }, "category_uid 1 and"},
		{"another class", func(l map[string]any) { l["class_uid"] = 4002 }, "4002 is none of ours"},
		{"an activity that is none", func(l map[string]any) { l["activity_id"], l["type_uid"] = 8, 400108 }, "activity_id: there is no 8"},
		{"a severity that is none", func(l map[string]any) { l["severity_id"] = 7 }, "severity_id: there is no 7"},
		{"a disposition that is none", func(l map[string]any) { l["disposition_id"] = 28 }, "disposition_id: there is no 28"},
		{"an action that is none", func(l map[string]any) { l["action_id"] = 5 }, "action_id: there is no 5"},
		{"an attribute of nobody's", func(l map[string]any) { l["colour"] = "red" }, "colour: the table does not say"},
		{"arguments", func(l map[string]any) {
			l["actor"].(map[string]any)["process"].(map[string]any)["cmd_line"] = "curl -u me:secret"
		}, "actor.process.cmd_line: the table does not say"},
		{"a file without a name", func(l map[string]any) {
			delete(l["actor"].(map[string]any)["process"].(map[string]any)["file"].(map[string]any), "name")
		}, "actor.process.file.name: it is required"},
		{"no endpoint", func(l map[string]any) { delete(l, "src_endpoint"); delete(l, "dst_endpoint") }, "one of src_endpoint, dst_endpoint is required"},
		{"an endpoint of a port alone", func(l map[string]any) { l["src_endpoint"] = map[string]any{"port": 1} }, "src_endpoint.one of ip"},
		{"an ancestor that is nobody", func(l map[string]any) {
			l["actor"].(map[string]any)["process"].(map[string]any)["ancestry"] = []any{map[string]any{}}
		}, "actor.process.ancestry[0].one of"},
		{"profiles that are numbers", func(l map[string]any) { l["metadata"].(map[string]any)["profiles"] = []any{1} }, "metadata.profiles: [1] is no strings"},
		{"a device that is none", func(l map[string]any) { l["device"] = "web" }, "device: it is no device"},
	} {
		var fields map[string]any
		must(t, json.Unmarshal(line, &fields))
		c.change(fields)
		changed, err := json.Marshal(fields)
		must(t, err)
		if faults := Conforms(changed); len(faults) != 1 || !strings.Contains(faults[0], c.want) {
			t.Errorf("%s: %q, want %q", c.name, faults, c.want)
		}
	}
	if faults := Conforms([]byte("hello")); len(faults) != 1 {
		t.Errorf("what is no JSON: %q", faults)
	}
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"nemoclaw/runtime"
	"nemoclaw/specs"
	"nemoclaw/specs/policy"
	"nemoclaw/specs/settings"
)

var checkCommand = &cli.Command{
	Name:      "check",
	Usage:     "read a policy and tell every fault in it, and what it does to a bundle",
	ArgsUsage: "FILE  |  --bundle DIR [FILE]",
	Flags: []cli.Flag{
		&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "tell what would be refused, changed and granted for the bundle in `DIR`"},
		&cli.BoolFlag{Name: "json", Usage: "print JSON for programs instead of text for people"},
	},
	Action: func(c *cli.Context) error {
		least := 1
		if c.IsSet("bundle") {
			least = 0 // then it is the policy that the bundle would get
		}
		if err := wants(c, least, 1); err != nil {
			return err
		}
		t, err := check(c.Args().First(), c.String("bundle"), c.String("policy"))
		if t == nil {
			return err
		}
		if c.Bool("json") {
			enc := json.NewEncoder(c.App.Writer)
			enc.SetIndent("", "  ")
			return errors.Join(enc.Encode(t), err)
		}
		t.print(c.App.Writer)
		return err
	},
}

// check explains the policy in file, which is empty for the one that create
// would choose, and with a bundle what create would do, and does none of it. A
// bundle that would be refused is explained as far as it goes, beside the error.
func check(file, bundle, chosen string) (*told, error) {
	var p *runtime.Chosen
	var err error
	if file != "" {
		if p, err = readPolicy(file); err != nil {
			return nil, err
		}
	}
	if bundle == "" {
		t := explain(p)
		t.policyAlone(p.Policy)
		return t, nil
	}
	s, err := settings.Load()
	if err != nil {
		return nil, err
	}
	if err := os.Chdir(bundle); err != nil { // relative paths in a spec are the bundle's
		return nil, fmt.Errorf("cannot enter the bundle: %w", err)
	}
	spec, err := runtime.LoadSpec("config.json")
	if err != nil {
		return nil, err
	}
	if p == nil {
		if p, err = runtime.ChoosePolicy(chosen, spec, s); err != nil {
			return nil, err
		}
	}
	if p.Unconfined {
		return nil, fmt.Errorf("cannot tell what the policy %s does: it turns every layer off", p.Name)
	}
	t := explain(p)
	t.Bundle = bundle
	return t, t.withBundle(spec, p, s)
}

func readPolicy(file string) (*runtime.Chosen, error) {
	src, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the policy: %w", err)
	}
	p, err := policy.Parse(file, src)
	if err != nil {
		return nil, fmt.Errorf("cannot use the policy:\n%w", err)
	}
	abs, err := filepath.Abs(file)
	return &runtime.Chosen{Policy: p, Name: file, Path: abs, Source: src}, err
}

// explain begins with what is known without a bundle.
func explain(p *runtime.Chosen) *told {
	t := &told{Policy: p.Name, Digest: p.Digest}
	for _, f := range p.Warnings(p.Source, time.Now()) {
		t.Warnings = append(t.Warnings, f.Error())
	}
	return t
}

// policyAlone tells what a policy says, whatever it is applied to.
func (t *told) policyAlone(p *policy.Policy) {
	files := t.filesystem(p)
	builtIn := 0
	for _, list := range []struct {
		paths []policy.Path
		class string
	}{{p.Filesystem.ReadOnly, "read_only"}, {p.Filesystem.ReadWrite, "read_write"}} {
		for _, f := range list.paths {
			if f.Line == 0 {
				builtIn++
				continue
			}
			what := f.Name + " " + list.class
			if f.NoExec {
				what += ", not executable"
			}
			files.add("grant", what, place(p, f.Line))
		}
	}
	for _, f := range p.Filesystem.Deny {
		files.add("hide", f.Name, place(p, f.Line))
	}
	files.builtIn(builtIn)
	t.calls(p, nil)
	t.process(p)
	t.network(p)
	t.egress(p)
}

// withBundle tells what create would do with a bundle.
func (t *told) withBundle(spec *oci.Spec, p *runtime.Chosen, s *settings.Settings) error {
	host, err := runtime.Survey(spec, p, s, s.RunDir)
	if err != nil {
		return err
	}
	if err := specs.Refuse(spec, p.Policy, host); err != nil {
		t.refuse(err)
		return runtime.Refused(err)
	}
	edits, denials, err := specs.Confine(spec, p.Policy, host)
	if err != nil {
		return err
	}
	specs.Apply(spec, edits)
	image := imageOf(spec, host)
	rules := specs.Rules(spec, p.Policy, host, image)

	links, absent := lookFor(spec, rules)
	files := t.filesystem(p.Policy)
	files.grants(spec, rules, links, host)
	files.carves(specs.Carves(p.Policy, rules))
	calls := t.calls(p.Policy, denials)
	process := t.process(p.Policy)
	network := t.network(p.Policy)
	t.egress(p.Policy)
	for _, does := range specs.Say(edits) {
		sectionOf(does, files, calls, process, network).edit(does)
	}
	if absent != nil {
		t.refuse(absent)
		return runtime.Refused(absent)
	}
	return nil
}

// imageOf is the image as it will be: as it lies in the bundle, and with the
// directories that libcontainer makes for mounts. Where its program is found is
// known only once the container's root stands.
func imageOf(spec *oci.Spec, host specs.Host) specs.Image {
	image := specs.Image{Program: spec.Process.Args[0]}
	for _, v := range specs.Visible(spec, host.Volumes) {
		image.Volumes = append(image.Volumes, filepath.Clean(v.Destination))
	}
	for _, m := range spec.Mounts {
		if top, _, _ := strings.Cut(strings.TrimPrefix(filepath.Clean(m.Destination), "/"), "/"); top != "" {
			image.TopLevel = append(image.TopLevel, top)
		}
	}
	if spec.Root != nil {
		entries, _ := os.ReadDir(spec.Root.Path) // nothing of a root that is mounted later
		for _, e := range entries {
			if e.IsDir() || e.Type().IsRegular() {
				image.TopLevel = append(image.TopLevel, e.Name())
			}
		}
	}
	slices.Sort(image.TopLevel)
	image.TopLevel = slices.Compact(image.TopLevel)
	return image
}

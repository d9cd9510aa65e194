package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

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
	Flags:     []cli.Flag{&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "tell what would be refused, changed and granted for the bundle in `DIR`"}},
	Action: func(c *cli.Context) error {
		least := 1
		if c.IsSet("bundle") {
			least = 0 // then it is the policy that the bundle would get
		}
		if err := wants(c, least, 1); err != nil {
			return err
		}
		var p *runtime.Chosen
		if file := c.Args().First(); file != "" {
			var err error
			if p, err = readPolicy(file); err != nil {
				return err
			}
			summary(c.App.Writer, file, p.Policy)
		}
		if dir := c.String("bundle"); dir != "" {
			return checkBundle(c, p, dir)
		}
		return nil
	},
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

func summary(w io.Writer, file string, p *policy.Policy) {
	fmt.Fprintf(w, "%s is a valid policy\n", file)
	fmt.Fprintf(w, "  filesystem: %d paths read-only, %d writable, image %s, volumes %s\n",
		len(p.Filesystem.ReadOnly), len(p.Filesystem.ReadWrite), p.Filesystem.Image, p.Filesystem.Volumes)
	fmt.Fprintf(w, "  network:    uplink %s, ingress %s\n", p.Network.Uplink, p.Network.Ingress)
	fmt.Fprintf(w, "  egress:     %d rules, %d deny rules\n", len(p.Egress.Rules), len(p.Egress.Deny))
	for _, r := range p.Egress.Rules {
		fmt.Fprintf(w, "    allow %s (%s)\n", r.String(), p.Where(&r))
	}
	for _, r := range p.Egress.Deny {
		fmt.Fprintf(w, "    deny  %s (%s)\n", r.String(), p.Where(&r))
	}
}

// checkBundle tells what create would do to the bundle in dir, and does none of
// it. p is nil for the policy that create would choose.
func checkBundle(c *cli.Context, p *runtime.Chosen, dir string) error {
	s, err := settings.Load()
	if err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil { // relative paths in a spec are the bundle's
		return fmt.Errorf("cannot enter the bundle: %w", err)
	}
	spec, err := runtime.LoadSpec("config.json")
	if err != nil {
		return err
	}
	if p == nil {
		if p, err = runtime.ChoosePolicy(c.String("policy"), spec, s); err != nil {
			return err
		}
	}
	host, err := runtime.Survey(spec, p, s, s.RunDir)
	if err != nil {
		return err
	}
	w := c.App.Writer
	if err := specs.Refuse(spec, p.Policy, host); err != nil {
		return runtime.Refused(err)
	}
	edits, denials, err := specs.Confine(spec, p.Policy, host)
	if err != nil {
		return err
	}
	specs.Apply(spec, edits)
	fmt.Fprintf(w, "the bundle %s would run under policy %s\n", dir, p.Name)
	for _, does := range specs.Say(edits) {
		fmt.Fprintf(w, "  change: %s\n", does)
	}
	fmt.Fprintf(w, "  seccomp: %d rules in the second filter\n", len(denials))
	rules := specs.Rules(spec, p.Policy, host, imageOf(spec))
	for _, r := range rules {
		if r.Why != "built-in" {
			fmt.Fprintf(w, "  grant:  %s\n", r)
		}
	}
	for _, c := range specs.Carves(p.Policy, rules) {
		fmt.Fprintf(w, "  mount:  %s\n", c)
	}
	return nil
}

// imageOf is the image as it lies in the bundle. Where its program is found is
// known only once the container's root stands.
func imageOf(spec *oci.Spec) specs.Image {
	image := specs.Image{Program: spec.Process.Args[0]}
	if spec.Root == nil {
		return image
	}
	entries, err := os.ReadDir(spec.Root.Path)
	if err != nil {
		return image // a root that is mounted later
	}
	for _, e := range entries {
		if e.IsDir() || e.Type().IsRegular() {
			image.TopLevel = append(image.TopLevel, e.Name())
		}
	}
	return image
}

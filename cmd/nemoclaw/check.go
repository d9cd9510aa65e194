package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"nemoclaw/specs/policy"
)

var checkCommand = &cli.Command{
	Name:      "check",
	Usage:     "read a policy and tell every fault in it",
	ArgsUsage: "FILE",
	Action: func(c *cli.Context) error {
		if err := wants(c, 1, 1); err != nil {
			return err
		}
		file := c.Args().First()
		src, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("cannot read the policy: %w", err)
		}
		p, err := policy.Parse(file, src)
		if err != nil {
			return fmt.Errorf("cannot use the policy:\n%w", err)
		}
		fmt.Fprintf(c.App.Writer, "%s is a valid policy\n", file)
		fmt.Fprintf(c.App.Writer, "  filesystem: %d paths read-only, %d writable, image %s, volumes %s\n",
			len(p.Filesystem.ReadOnly), len(p.Filesystem.ReadWrite), p.Filesystem.Image, p.Filesystem.Volumes)
		fmt.Fprintf(c.App.Writer, "  network:    uplink %s, ingress %s\n", p.Network.Uplink, p.Network.Ingress)
		fmt.Fprintf(c.App.Writer, "  egress:     %d rules, %d deny rules\n", len(p.Egress.Rules), len(p.Egress.Deny))
		for _, r := range p.Egress.Rules {
			fmt.Fprintf(c.App.Writer, "    allow %s (%s)\n", r.String(), p.Where(&r))
		}
		for _, r := range p.Egress.Deny {
			fmt.Fprintf(c.App.Writer, "    deny  %s (%s)\n", r.String(), p.Where(&r))
		}
		return nil
	},
}

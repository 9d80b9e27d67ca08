// What Kubernetes' own code says of a CustomResourceDefinition, and of objects of its kind.
//
//	judge CRD.json OBJECTS.jsonl
//
// Every line of OBJECTS has an object, and the object it replaces or null: {"object": ..., "old": ...}. For each a line
// comes back, the JSON list of what is wrong: unknown fields (as with strict field validation), the schema, its lists, its
// rules in CEL. A CRD that is not admitted ends it with 1. kubernetes_code.py builds it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	apiserver "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	limits "k8s.io/apiserver/pkg/apis/cel"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

// Numbers as the API server reads them: whole ones are int64.
func object(raw json.RawMessage) map[string]interface{} {
	var found map[string]interface{}
	if len(raw) > 0 && string(raw) != "null" {
		must(utiljson.Unmarshal(raw, &found))
	}
	return found
}

func admitted(ctx context.Context, file string) *apiextensions.JSONSchemaProps {
	data, err := os.ReadFile(file)
	must(err)
	given, crd, scheme := &v1.CustomResourceDefinition{}, &apiextensions.CustomResourceDefinition{}, runtime.NewScheme()
	must(apiextensions.AddToScheme(scheme))
	must(v1.AddToScheme(scheme))
	must(json.Unmarshal(data, given))
	v1.SetDefaults_CustomResourceDefinition(given)
	v1.SetDefaults_CustomResourceDefinitionSpec(&given.Spec)
	must(scheme.Convert(given, crd, nil))
	crd.Status.StoredVersions = []string{given.Spec.Versions[0].Name}
	if wrong := validation.ValidateCustomResourceDefinition(ctx, crd); len(wrong) > 0 {
		for _, each := range wrong {
			fmt.Fprintln(os.Stderr, each)
		}
		os.Exit(1)
	}
	if crd.Spec.Validation != nil {
		return crd.Spec.Validation.OpenAPIV3Schema
	}
	return crd.Spec.Versions[0].Schema.OpenAPIV3Schema
}

func main() {
	ctx := context.Background()
	props := admitted(ctx, os.Args[1])
	structural, err := schema.NewStructural(props)
	must(err)
	rules := cel.NewValidator(structural, true, limits.PerCallLimit)
	values, _, err := apiserver.NewSchemaValidator(props)
	must(err)
	tracked := schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	file, err := os.Open(os.Args[2])
	must(err)
	lines := bufio.NewScanner(file)
	lines.Buffer(make([]byte, 1<<20), 64<<20)
	for lines.Scan() {
		var line struct{ Object, Old json.RawMessage }
		must(json.Unmarshal(lines.Bytes(), &line))
		new, said := object(line.Object), []string{}
		var old interface{}
		if before := object(line.Old); before != nil {
			old = before
		}
		for _, path := range pruning.PruneWithOptions(new, structural, true, tracked) {
			said = append(said, "unknown field "+path)
		}
		wrong := apiserver.ValidateCustomResource(nil, new, values)
		wrong = append(wrong, listtype.ValidateListSetsAndMaps(nil, structural, new)...)
		broken, _ := rules.Validate(ctx, nil, structural, new, old, limits.RuntimeCELCostBudget)
		for _, each := range append(wrong, broken...) {
			said = append(said, each.Error())
		}
		must(json.NewEncoder(os.Stdout).Encode(said))
	}
	must(lines.Err())
}
